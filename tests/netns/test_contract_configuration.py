"""docs/contract.md, section Configuration file: what the hook makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.contract import table
from tests.netns.contract import FILE, furnish, hook, shell
from tests.netns.etc import private_etc
from tests.netns.operations.test_hook import ENDPOINT, up
from tests.unit.test_contract import CASES
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


# The /etc/hosts: a name that is not in it does not exist.
HOSTS = "127.0.0.1 localhost\n192.0.2.10 several\n192.0.2.9 several\n"

# The row for which a name server must not answer; config/test_name_servers.py checks it.
UNANSWERED = "host name for which no name server answers"


@pytest.fixture(scope="module")
def configured(real_kernel: None) -> Iterator[Hypervisor]:
    """A hypervisor with a bridge, on which the hook reads one file after the other."""
    with Hypervisor() as hypervisor:
        hypervisor.add_bridge("br0")
        # "multi on": all addresses of a name, host.conf(5).
        private_etc(hypervisor, hosts=HOSTS, nsswitch_conf="hosts: files\n", host_conf="multi on\n")
        yield hypervisor


def services(host: Hypervisor) -> dict[int, str]:
    """Return the endpoints in the service map of br0, and beside it, by service port; none without a map."""
    listing = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0", check=False).stdout
    found = re.findall(r"(\d+)(?: comment \"[^\"]*\")? : ([\d.]+) \. (\d+)", listing)
    beside = host.run("nft", "list", "set", "ip", "one_tproxy", "op_br0", check=False).stdout
    alone = re.findall(r"(\d+) \. 0x00010000 comment \"endpoints=(unix[^ \"]*)\"", beside)
    return {
        **{int(port): f"{address}:{remote}" for port, address, remote in found},
        **{int(port): unquote(socket) for port, socket in alone},
    }


@pytest.mark.parametrize("case", [case for case in CASES if case != UNANSWERED])
def test_the_hook_loads_what_the_contract_says_of_a_case(configured: Hypervisor, case: str) -> None:
    assert case in table("Configuration file", "case").column("case")
    host = configured
    for text, expected in CASES[case]:
        host.tproxy("hook", "down", "--bridge", "br0")
        before = shell(host, "nft list ruleset; ls /sys/class/net")
        host.write(FILE, text)
        done = up(host, "br0", FILE, "--network", "vnet1", "--network-id", "0", check=False)
        lines = done.stderr.splitlines()
        if expected is None:
            assert (done.returncode, len(lines)) == (1, 1)
            assert f"{FILE}:" in lines[0]
        else:
            assert (done.returncode, len(lines)) == (0, expected.warnings)
            assert all(re.match(rf"(?:tproxy: )?{FILE}:\d+: ", line) for line in lines)
            assert services(host) == expected.endpoints
        if expected is None or not expected.endpoints:
            assert shell(host, "nft list ruleset; ls /sys/class/net") == before


@pytest.mark.parametrize("content", ["missing", "a folder", "too large", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_reported_in_one_line(configured: Hypervisor, content: str) -> None:
    make = {
        "missing": "true",
        "a folder": "mkdir unusable",
        "too large": "(echo 'tproxy: []'; yes '#' | head -c 1100000) >unusable",
        "not UTF-8": "printf 'tproxy: []\\n# \\377\\n' >unusable",
    }
    shell(configured, f"cd /run; rm -rf unusable; {make[content]}")
    done = up(configured, "br0", "/run/unusable", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "/run/unusable" in done.stderr


TABLE = f"""
:other_key: of somebody else
:tproxy:
- :service_port: 5030
  :remote_addr: {ENDPOINT}
  :remote_port: 8080
- :service_port: 5030
  :remote_addr: 10.99.99.99
  :remote_port: 1
- :remote_port: 5031
- :remote_addr: {ENDPOINT}
- :service_port: 65536
  :remote_addr: {ENDPOINT}
  :remote_port: 8080
- :service_port: 5034
  :remote_addr: no-such-host.invalid
  :remote_port: 8080
- :service_port: 5035
  :remote_addr: {ENDPOINT}
  :remote_port: 8080
  :networks: [green, 8]
- :remote_addr: {ENDPOINT}
  :remote_port: 8080
  :networks: [red, 7]
"""


def test_entries_that_cannot_apply_are_skipped_with_a_warning(host: Hypervisor) -> None:
    host.write("/run/tproxy.yaml", TABLE)
    guest = host.add_guest("guest", "br0")
    done = hook(host, "br0", "--network", "blue", "--network-id", "7")
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    named = [("entry 2", "5030"), ("entry 3", "remote_addr"), ("entry 4", "remote_port")]
    named += [("entry 5", "65536"), ("entry 6", "no-such-host.invalid")]
    for entry, what in named:
        assert any(entry in line and what in line for line in warnings), f"{entry} with {what}: {warnings}"
    assert len(warnings) == len(named)
    for port in (5030, 8080):
        assert guest.get(SERVICE_ADDRESS, port) == "hello"
    listing = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    assert listing.count(" : ") == 1 + 2  # the type and two elements


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("rm /run/tproxy.yaml", "'/run/tproxy.yaml': no such file"),
        ("rm /run/tproxy.yaml; mkdir /run/tproxy.yaml", "/run/tproxy.yaml"),
        ("printf 'a: 1\\ntproxy: [\\n' >/run/tproxy.yaml", "/run/tproxy.yaml:3: "),
        ("printf 'a: 1\\ntproxy: 5\\n' >/run/tproxy.yaml", "/run/tproxy.yaml:2: "),
        ("head -c 99 /dev/urandom >/run/tproxy.yaml", "/run/tproxy.yaml"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing(host: Hypervisor, prepare: str, said: str) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    before = host.run("nft", "-a", "list", "ruleset").stdout
    shell(host, prepare)
    done = up(host, "br0", "/run/tproxy.yaml", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert host.run("nft", "-a", "list", "ruleset").stdout == before
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


def test_files_are_found_in_the_search_order(host: Hypervisor) -> None:
    hosts = f"127.0.0.1 localhost\n{ENDPOINT} endpoint.of.mine\n"
    private_etc(host, hosts=hosts, nsswitch_conf="hosts: files\n")
    shell(host, "mount -t tmpfs none /var/tmp")
    places = [
        ("/etc/tproxy/tproxy.yaml", 1004),
        ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", 1003),
        ("/run/by-environment.yaml", 1002),
        ("/run/by-option.yaml", 1001),
    ]
    none = host.tproxy("hook", "up", "--bridge", "br0", check=False)
    assert (none.returncode, none.stderr.count("\n")) == (1, 1)
    for place, port in places:
        entry = f"{{service_port: {port}, remote_addr: endpoint.of.mine, remote_port: 8080}}"
        shell(host, f"mkdir -p {Path(place).parent}; echo 'tproxy: [{entry}]' >{place}")
        option = ["--config", place] if "option" in place else []
        env = {"TPROXY_CONFIG": "/run/by-environment.yaml"} if port < 1003 else {}
        host.tproxy("hook", "up", "--bridge", "br0", *option, env=env)
        listing = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
        assert f"elements = {{ {port} : {ENDPOINT} . 8080 }}" in listing

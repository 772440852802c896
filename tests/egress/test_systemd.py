"""``tproxy egress up`` and ``down`` with a real systemd: units with the limits and sandbox of production."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.netns.daemon.test_systemd import SYSTEMD, Machine, needs
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

PROGRAMS = Path(__file__).with_name("programs")
BOOT = PROGRAMS / "boot_writable.sh"
TPROXY = (sys.executable, "-m", "tproxy", "egress")
PARTS = ("squid", "mirror", "front")
SITE = "93.184.215.14"


@pytest.fixture(scope="module")
def machine(engines: None) -> Iterator[Machine]:
    needs(SYSTEMD)
    with Hypervisor() as host, closing(Machine(host, BOOT)) as booted:
        booted.wait()
        yield booted


def egress(machine: Machine, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return machine.run(*TPROXY, *words, check=check)


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(egress(machine, "status", "--json", check=False).stdout)
    return found


def is_unit(name: str) -> bool:
    return name.startswith("tproxy-egress") and not name.endswith(".d")  # those are the test's


def await_order(machine: Machine) -> None:
    """Return when all parts run and nothing is wrong."""
    for _ in eventually():
        if not status(machine)["findings"]:
            return


def squid(machine: Machine) -> str:
    """Return the instance of squid that takes new connections, as its unit is called."""
    name = machine.run("readlink", "/run/tproxy-egress/squid.pid").stdout.strip()
    return name.removesuffix(".pid").replace("-", "@")  # squid-a.pid


def state(machine: Machine, unit: str) -> str:
    return machine.run("systemctl", "is-active", unit, check=False).stdout.strip()


@pytest.fixture(scope="module")
def sites(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A web site that squid finds at an address of the internet. Yield the directory of its files."""
    directory = tmp_path_factory.mktemp("sites")
    directory.chmod(0o755)
    machine.host.ip(f"address add {SITE} dev lo")
    machine.run("sh", "-c", f"echo {SITE} host.example >>/etc/hosts")
    (directory / "host.example").mkdir()
    (directory / "host.example/small").write_text("small\n")
    (directory / "host.example/large").write_bytes(bytes(200_000_000))
    pem = directory / "site.pem"
    words = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=host.example")
    subprocess.run([*words, "-keyout", pem, "-out", pem], check=True, capture_output=True)
    arguments = (SITE, str(directory), str(pem))
    machine.host.popen(sys.executable, "-m", "tproxy.lab.egress.sites", *arguments)
    caller = (str(PROGRAMS / "with_header.py"), "20001", "3128", "10.0.0.5", "network=build")
    machine.host.popen(sys.executable, *caller)
    for port in (80, 20001):
        for _ in eventually():
            if machine.run("ss", "-Hltn", f"sport = {port}").stdout:
                break
    yield directory
    (directory / "host.example/large").unlink()


def check_that_a_restart_drops_no_download(machine: Machine, sites: Path) -> None:
    policy = f'inner: [{SITE}]\\nrules: [{{networks: [build], get: ["http://host.example/*"]}}]'
    machine.run("sh", "-c", f"printf '{policy}\\n' >/etc/tproxy/egress.yaml")
    get = ("curl", "-sS", "--proxy", "http://127.0.0.1:20001", "http://host.example/small")
    for _ in eventually():  # squid has to take the address of the site
        if machine.run(*get, check=False).stdout == "small\n":
            break
    to, old = sites / "download", squid(machine)
    slow = machine.host.popen(*get[:-1], "--limit-rate", "1M", "-o", str(to), "http://host.example/large")
    for _ in eventually():
        if to.exists() and to.stat().st_size:
            break
    machine.systemctl("restart", "tproxy-egress-squid")
    assert squid(machine) != old
    assert machine.run(*get).stdout == "small\n"
    size = to.stat().st_size
    for _ in eventually():
        if to.stat().st_size > size + 1_000_000:
            break
    assert (slow.poll(), state(machine, f"tproxy-egress-{old}")) == (None, "active")
    slow.terminate()
    for _ in eventually():
        if state(machine, f"tproxy-egress-{old}") == state(machine, "tproxy-egress-drain") == "inactive":
            break
    assert machine.run(*get).stdout == "small\n"


def check_that_logs_rotate(machine: Machine) -> None:
    """With Debian's logrotate, whose state is kept where this machine may write."""
    get = ("curl", "-sS", "--proxy", "http://127.0.0.1:20001", "http://host.example/small")
    log = "/var/log/tproxy-egress/access.json"
    rotate = ("logrotate", "--force", "--state", "/run/logrotate.state", "/etc/logrotate.d/tproxy-egress")
    assert machine.run(*rotate).stderr == ""
    for _ in eventually():  # squid opens new logs when it gets to that
        if machine.run("test", "-e", log, check=False).returncode == 0:
            break
    assert machine.run(*get).stdout == "small\n"
    for _ in eventually():
        if "host.example" in machine.run("cat", log).stdout:
            break
    assert "host.example" in machine.run("cat", f"{log}.1").stdout


def since(machine: Machine, part: str) -> str:
    return machine.systemctl("show", "--property=ActiveEnterTimestampMonotonic", f"tproxy-egress-{part}")


def test_up_starts_all_parts_which_come_back_and_down_leaves_nothing(machine: Machine, sites: Path) -> None:
    """One test: each step needs the one before, and a start takes some seconds."""
    before = egress(machine, "status", check=False)
    assert before.returncode == 1
    assert "squid: does not run" in before.stdout

    assert "running, by the policy /etc/tproxy/egress.yaml" in egress(machine, "up").stdout
    await_order(machine)
    assert status(machine)["parts"] == dict.fromkeys(PARTS, True)
    assert 'tproxy_egress_up{part="squid"} 1' in egress(machine, "metrics").stdout
    assert "valid until" in egress(machine, "ca").stdout
    assert "running" in egress(machine, "up").stdout  # again: changes nothing

    for part in (squid(machine), "mirror", "front"):
        machine.systemctl("kill", "--kill-who=main", "--signal=KILL", f"tproxy-egress-{part}")
        for _ in eventually():
            shown = machine.systemctl("show", "--property=NRestarts", f"tproxy-egress-{part}").strip()
            if shown == "NRestarts=1":
                break
    await_order(machine)
    check_that_a_restart_drops_no_download(machine, sites)
    check_that_logs_rotate(machine)

    started = {part: since(machine, part) for part in PARTS}
    code = "from tproxy.egress.upgrade import services; print(services.restart())"
    assert "started again: tproxy-egress-squid" in machine.run(sys.executable, "-c", code).stdout
    await_order(machine)
    assert not {part for part in PARTS if since(machine, part) == started[part]}

    write = ("sh", "-c", 'printf "listen: {proxy: [3128, 8444]}\\nmode: sealed\\n" >/etc/tproxy/egress.yaml')
    machine.run(*write)
    for _ in eventually():  # the path unit has squid look again, and the mirror looks by itself
        if (
            machine.run("ss", "-Hltn", "sport = 8444").stdout
            and status(machine)["mirror"]["mode"] == "sealed"
        ):
            break
    await_order(machine)

    assert "/var/lib/tproxy-egress is kept" in egress(machine, "down").stdout
    assert not machine.run("ss", "-Hltn", "sport = 3128").stdout
    assert machine.run("ls", "/var/lib/tproxy-egress/ca/ca.key", check=False).returncode == 0
    assert "one_tproxy_egress" not in machine.run("nft", "list", "tables").stdout

    egress(machine, "up")
    await_order(machine)
    assert "removed /var/lib/tproxy-egress" in egress(machine, "down", "--purge").stdout
    for path in ("/var/lib/tproxy-egress", "/run/tproxy-egress", "/var/log/tproxy-egress"):
        assert machine.run("ls", "-d", path, check=False).returncode == 2, path
    assert not [each for each in machine.run("ls", "/etc/systemd/system").stdout.split() if is_unit(each)]
    assert machine.run("ls", "/etc/logrotate.d/tproxy-egress", check=False).returncode == 2
    assert machine.run("cat", "/etc/tproxy/egress.yaml").stdout.startswith("listen")

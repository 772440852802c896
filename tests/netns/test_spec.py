"""The contract, statement by statement, as an operator's own tools show it.

Here is what no test elsewhere looks at. What the hook builds and repairs is in ``test_hook``, the
commands in ``test_commands``, connections in ``test_streams``, guards in ``test_guards``.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tproxy
from tests.netns.conftest import NOBODY
from tests.netns.etc import private_etc
from tests.netns.operations.test_hook import (
    CONFIG,
    ENDPOINT,
    assert_as_specified,
    assert_nothing_left,
    down,
    up,
)
from tests.netns.operations.test_life import ECHO, Conversation, Lab
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import SERVICE_ADDRESS

KILL_AT = Path(__file__).with_name("programs") / "kill_at.py"


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "hello")
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    return hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> Lab:
    return Lab(hypervisor)


def hook(host: Hypervisor, bridge: str = "br0", *more: str) -> subprocess.CompletedProcess[str]:
    return up(host, bridge, "/run/tproxy.yaml", *more)


def shell(host: Hypervisor, script: str, netns: str | None = None) -> str:
    return host.run("sh", "-euc", script, netns=netns).stdout


# Section 2: names on the host


def test_ip_shows_namespace_and_veth_pair_and_nothing_besides(host: Hypervisor) -> None:
    hook(host)
    assert host.run("ip", "netns", "list").stdout.split()[0] == "one_tproxy_br0"
    outer = host.run("ip", "-o", "link", "show", "br0b").stdout
    assert " master br0 " in outer
    assert ",UP,LOWER_UP" in outer
    netns = "one_tproxy_br0"
    links = [line.split()[1] for line in host.run("ip", "-o", "link", netns=netns).stdout.splitlines()]
    assert [name.partition("@")[0].strip(":") for name in links] == ["lo", "br0a"]
    (address,) = host.run("ip", "-o", "-4", "address", "show", "br0a", netns=netns).stdout.splitlines()
    assert "inet 169.254.16.9/32 scope" in address
    assert host.run("ip", "-4", "route", netns=netns).stdout == "default dev br0a scope link \n"
    assert host.run("ip", "-6", "address", netns=netns).stdout == ""
    assert host.run("ip", "-6", "route", netns=netns).stdout == ""


def test_nft_shows_map_and_chain_under_their_names(host: Hypervisor) -> None:
    hook(host)
    listing = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    assert [line.strip() for line in listing.splitlines()] == [
        "table ip one_tproxy {",
        "map ep_br0 {",
        "type inet_service : ipv4_addr . inet_service",
        f"elements = {{ 5030 : {ENDPOINT} . 8080 }}",
        "}",
        "}",
    ]
    chain = host.run("nft", "list", "chain", "bridge", "one_tproxy", "ch_br0").stdout
    assert "type filter hook forward priority filter; policy accept;" in chain


def test_processes_are_found_by_title_and_leave_no_pid_file(host: Hypervisor) -> None:
    hook(host)
    titles = host.run("ps", "-eo", "args=").stdout.splitlines()
    assert titles.count("one_tproxy") == titles.count("one_tproxy_br0") == 1
    relay = host.run("pgrep", "-f", "^one_tproxy_br0 *$").stdout.strip()
    inside = host.run("stat", "-Lc", "%i", f"/proc/{relay}/ns/net", "/run/netns/one_tproxy_br0").stdout
    assert len(set(inside.split())) == 1
    assert host.run("find", "/run", "/var/log", "-iname", "*pid*").stdout == ""


def test_both_logs_are_appended_to_and_reopened_when_they_were_rotated(lab: Lab) -> None:
    logs = [lab.host.path(f"/var/log/{name}.log") for name in ("one_tproxy", "one_tproxy_br0")]
    for log in logs:
        log.write_text("what was there before\n" + log.read_text())
    lab.host.tproxy("restart")
    for log in logs:
        assert log.read_text().startswith("what was there before\n")
        assert log.read_text().count(" started\n") == 2
        log.rename(log.with_suffix(".1"))
    lab.host.tproxy("reload")
    for log in logs:
        for _ in eventually():  # the relay does so when it comes to the signal
            if log.exists():
                break
    lab.nft(lab.element("add", 5031, 8081))
    lab.host.tproxy("start")
    for log in logs:
        for _ in eventually():
            if log.exists() and "port 5031" in log.read_text():
                break


def test_a_dot_in_a_bridges_name_does_not_lead_sysctls_astray(host: Hypervisor) -> None:
    for scope in ("all", "default"):
        shell(host, f"sysctl -qw net.ipv4.conf.{scope}.arp_ignore=2 net.ipv4.conf.{scope}.rp_filter=1")
    host.add_bridge("a.b-c.10")
    guest = host.add_guest("guest", "a.b-c.10")
    hook(host, "a.b-c.10")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    conf = "/proc/sys/net/ipv4/conf/a.b-c.10a/arp_ignore"
    shell(host, f"echo 2 >{conf}", netns="one_tproxy_a.b-c.10")
    hook(host, "a.b-c.10")
    assert shell(host, f"cat {conf}", netns="one_tproxy_a.b-c.10") == "1\n"


# Section 3: nftables is the database

# What a driver of its own does; the three nft commands are those of the contract, to the letter.
BY_HAND = """
ip netns add one_tproxy_br0
ip link add br0b type veth peer name br0a netns one_tproxy_br0
ip link set br0b master br0 up
ip -n one_tproxy_br0 link set br0a up
ip -n one_tproxy_br0 address add 169.254.16.9/32 dev br0a
ip -n one_tproxy_br0 route add default dev br0a scope link
nft add table ip one_tproxy
nft add map ip one_tproxy ep_br0 '{ type inet_service : ipv4_addr . inet_service; }'
nft add element ip one_tproxy ep_br0 '{ 5030 : 10.11.12.13 . 5030 }'
"""


@pytest.mark.parametrize("verb", ["start", "reload", "restart"])
def test_maps_alone_are_enough_without_hook_and_configuration(hypervisor: Hypervisor, verb: str) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint(ENDPOINT, 5030, "hello")
    guest = hypervisor.add_guest("guest", "br0")
    shell(hypervisor, BY_HAND)
    before = hypervisor.run("nft", "-a", "list", "ruleset").stdout
    done = hypervisor.tproxy(verb)
    assert (done.stdout, done.stderr) == ("", "")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    hypervisor.tproxy("stop")
    # Handles too: relays and daemon only read.
    assert hypervisor.run("nft", "-a", "list", "ruleset").stdout == before


ODD_ELEMENTS = {
    "a range": ("flags interval; elements = { 6000-6010 : 10.11.12.13 . 5030 }", "6000"),
    "any port": ("elements = { * : 10.11.12.13 . 5030 }", "*"),
    "port 0": ("elements = { 0 : 10.11.12.13 . 5030 }", "0"),
}


@pytest.mark.parametrize("odd", ODD_ELEMENTS)
def test_an_element_that_is_no_service_port_is_named_and_keeps_nobody_from_service(
    hypervisor: Hypervisor, odd: str
) -> None:
    hypervisor.add_bridge("br0")
    hypervisor.add_bridge("br1")
    hypervisor.add_endpoint(ENDPOINT, 5030, "hello")
    guest = hypervisor.add_guest("guest", "br0")
    shell(hypervisor, BY_HAND)
    elements, named = ODD_ELEMENTS[odd]
    shell(hypervisor, BY_HAND.split("nft")[0].replace("br0", "br1"))
    map_type = "type inet_service : ipv4_addr . inet_service"
    shell(hypervisor, f"nft 'add map ip one_tproxy ep_br1 {{ {map_type}; {elements}; }}'")
    for verb in ("start", "reload"):
        done = hypervisor.tproxy(verb)
        assert done.stderr.count("\n") == 1
        assert "map ep_br1: " in done.stderr
        assert named in done.stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert shell(hypervisor, "ss -Hltn", netns="one_tproxy_br1") == ""
    hypervisor.tproxy("hook", "down", "--bridge", "br1")
    assert "ep_br1" not in hypervisor.run("nft", "list", "ruleset").stdout


# Section 4: the command line


def test_without_any_map_every_command_is_quiet_and_succeeds(hypervisor: Hypervisor) -> None:
    for verb in ("start", "reload", "restart", "stop", "status"):
        done = hypervisor.tproxy(verb)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""


def test_the_commands_say_nothing_when_all_is_well(lab: Lab) -> None:
    for verb in ("start", "reload", "restart", "stop", "start"):
        done = lab.host.tproxy(verb)
        assert (done.stdout, done.stderr) == ("", "")


def test_the_commands_take_no_argument_and_do_nothing_with_one(lab: Lab) -> None:
    before = lab.pids()
    for verb in ("start", "stop", "restart", "reload", "status"):
        done = lab.host.tproxy(verb, "br0", check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "br0" in done.stderr
    assert lab.pids() == before


def test_an_unknown_command_or_option_is_one_line(hypervisor: Hypervisor) -> None:
    for arguments in (
        ["strat"],
        ["status", "--jsn"],
        ["--what"],
        ["hook", "sideways"],
        ["hook"],
        ["hook", "up"],
        ["hook", "up", "--bridge"],
        ["hook", "up", "--bridge", "br0", "br1"],
        ["hook", "up", "--bridge", "br0", "--force"],
        ["hook", "up", "--bridge", "br0", "--two\nlines \udcff"],
    ):
        done = hypervisor.tproxy(*arguments, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_the_commands_need_root_and_say_so(lab: Lab) -> None:
    before = lab.pids()
    hook_up = "hook up --bridge br0 --config /run/tproxy.yaml"
    for verb in ("start", "stop", "restart", "reload", "status", hook_up, "hook down --bridge br0"):
        done = lab.host.run(*NOBODY, sys.executable, "-m", "tproxy", *verb.split(), check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "tproxy: must be run as root\n")
    assert lab.pids() == before


def test_a_traceback_comes_on_request_only(hypervisor: Hypervisor) -> None:
    command = ["hook", "up", "--bridge", "none", "--config", "/none"]
    plain = hypervisor.tproxy(*command, check=False)
    assert plain.stderr.count("\n") == 1
    for arguments, env in (([*command, "--debug"], {}), (command, {"TPROXY_DEBUG": "1"})):
        told = hypervisor.tproxy(*arguments, check=False, env=env)
        assert "Traceback" in told.stderr
        assert told.stderr.endswith(plain.stderr)
        assert told.returncode == plain.returncode == 1


def test_status_shows_what_it_can_of_a_daemon_that_hangs_and_says_so(lab: Lab) -> None:
    lines = lab.host.tproxy("status").stdout
    lab.host.run("pkill", "-STOP", "-f", "^one_tproxy *$")
    assert lab.host.tproxy("status").stdout == lines
    told = lab.host.tproxy("status", "--verbose", check=False)
    assert (told.returncode, told.stdout) == (1, lines)
    assert told.stderr == "tproxy: the daemon did not answer within 5 s\n"


def test_a_map_without_a_namespace_does_not_keep_the_old_daemon_alive_after_a_restart(lab: Lab) -> None:
    lab.nft("add map ip one_tproxy ep_nons { type inet_service : ipv4_addr . inet_service; }")
    for _ in range(2):
        done = lab.host.tproxy("restart", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "nons" in done.stderr
    for _ in eventually():
        if "tproxy-draining" not in lab.host.run("ps", "-eo", "args=").stdout:
            break
    assert lab.ask() == "one"


def test_restart_runs_the_code_that_is_installed_now(hypervisor: Hypervisor, tmp_path: Path) -> None:
    lab = Lab(hypervisor)
    shutil.copytree(tproxy.__path__[0], tmp_path / "tproxy", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "tproxy/__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "99.9"\n')

    def version() -> str:
        return str(json.loads(hypervisor.tproxy("status", "--json").stdout)["daemon"]["version"])

    assert version() == tproxy.__version__
    hypervisor.run(sys.executable, "-m", "tproxy", "restart", env={"PYTHONPATH": str(tmp_path)})
    assert version() == "99.9"
    assert lab.ask() == "one"


# Section 5: the configuration file

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


def test_what_cannot_apply_is_named_and_the_rest_applies(host: Hypervisor) -> None:
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
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_what_is_up(
    host: Hypervisor, prepare: str, said: str
) -> None:
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


def test_the_search_order_and_names_that_this_hypervisor_resolves(host: Hypervisor) -> None:
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


# Section 6: the hook


def steps(host: Hypervisor, *arguments: str) -> int:
    """How many calls a command takes; it is carried out."""
    return int(host.run(sys.executable, str(KILL_AT), "0", *arguments).stdout)


def kill_at(host: Hypervisor, number: int, *arguments: str) -> None:
    ended = host.run(sys.executable, str(KILL_AT), str(number), *arguments, check=False)
    assert ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), f"{number}: {ended}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_hooks_killed_at_any_point_are_completed_by_the_next(host: Hypervisor, part: int) -> None:
    guest = host.add_guest("guest", "br0")
    arguments = ["--bridge", "br0", "--config", "/run/tproxy.yaml"]
    calls = {"up": steps(host, "hook", "up", *arguments)}
    calls["down"] = steps(host, "hook", "down", *arguments, "--force")
    for point in (part, part + 4):
        share = 0.2 + 0.1 * point  # before, it reads options and the configuration only
        kill_at(host, int(calls["up"] * share), "hook", "up", *arguments)
        hook(host)
        assert_as_specified(host, "br0")
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        kill_at(host, int(calls["down"] * share), "hook", "down", *arguments, "--force")
        down(host, "br0", "--force")
        assert_nothing_left(host)


def test_twelve_ups_and_downs_at_once_end_as_if_one_after_another(host: Hypervisor) -> None:
    bridges = ["br0", "br1", "br2"]
    for bridge in bridges[1:]:
        host.add_bridge(bridge)
    for _ in range(2):
        hooks = [
            host.popen(
                *(sys.executable, "-m", "tproxy", "hook", verb, "--bridge", bridge),
                *("--config", "/run/tproxy.yaml"),
                stderr=subprocess.PIPE,
            )
            for verb in ("up", "down", "up", "down")
            for bridge in bridges
        ]
        assert [(each.communicate()[1], each.returncode) for each in hooks] == [("", 0)] * 12
        up_now = {line.partition(":")[0] for line in host.tproxy("status").stdout.splitlines()}
        for bridge in bridges:
            # Whole or not at all, whichever came last.
            if f"one_tproxy_{bridge}" in up_now:
                assert_as_specified(host, bridge)
            else:
                assert f"{bridge}b" not in host.run("ip", "-br", "link").stdout
                assert f"ch_{bridge}" not in host.run("nft", "list", "ruleset").stdout
    for bridge in bridges:
        down(host, bridge)
    assert_nothing_left(host)


def test_starting_a_guest_cuts_nobody_elses_connection(lab: Lab) -> None:
    lab.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, "-c", ECHO))
    entries = f"{{remote_addr: {ENDPOINT}, remote_port: 8080, service_port: 5030}}"
    entries += f", {{remote_addr: {ENDPOINT}, remote_port: 9000}}"
    lab.host.write("/run/tproxy.yaml", f"tproxy: [{entries}]\n")
    hook(lab.host)
    conversation = Conversation(lab, 9000)
    pids = lab.pids()
    assert conversation.say("hello") == "hello"
    lab.host.add_guest("second", "br0", "10.0.0.6/24")
    hook(lab.host, "br0", "--network", "now-it-has-a-name")
    assert conversation.say("a guest on the same bridge") == "a guest on the same bridge"
    lab.host.add_bridge("br1")
    hook(lab.host, "br1")
    assert conversation.say("a guest on another bridge") == "a guest on another bridge"
    down(lab.host, "br1")
    assert conversation.say("that one has left") == "that one has left"
    for damage in ("nft flush ruleset", "nft delete map ip one_tproxy ep_br0"):
        shell(lab.host, damage)
        hook(lab.host)
        assert conversation.say(f"repaired after {damage}") == f"repaired after {damage}"
    lab.host.write("/run/tproxy.yaml", CONFIG)  # the port is gone, the connection goes on
    hook(lab.host)
    assert conversation.say("open connections go on") == "open connections go on"
    assert lab.pids() == pids


def test_down_with_an_emptied_configuration_still_asks_whether_guests_are_there(host: Hypervisor) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    host.write("/run/tproxy.yaml", "tproxy: []\n")
    done = down(host, "br0", "--config", "/run/tproxy.yaml")
    assert done.returncode == 0
    assert guest.port in done.stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    host.ip(f"link delete {guest.port}")
    down(host, "br0", "--config", "/run/tproxy.yaml")
    assert_nothing_left(host)


def test_down_of_a_bridge_that_never_was_up_does_nothing(host: Hypervisor) -> None:
    before = host.run("ip", "-br", "link").stdout
    for bridge in ("br0", "gone"):
        done = down(host, bridge)
        assert (done.stdout, done.stderr) == ("", "")
    assert host.run("ip", "-br", "link").stdout == before


# Section 7: what guests see


def test_a_service_of_one_network_is_no_service_of_another(host: Hypervisor) -> None:
    host.add_endpoint(ENDPOINT, 8081, "green's own")
    green = CONFIG.split("tproxy:")[1].replace("503", "603").replace("8080", "8081") + "  networks: [green]\n"
    host.write("/run/tproxy.yaml", CONFIG + green)
    host.add_bridge("br1")
    guests = {name: host.add_guest(name, bridge) for name, bridge in (("blue", "br0"), ("green", "br1"))}
    for guest in guests.values():
        hook(host, guest.bridge, "--network", guest.name)
    assert guests["green"].get(SERVICE_ADDRESS, 6030) == "green's own"
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        guests["blue"].get(SERVICE_ADDRESS, 6030)
    assert guests["blue"].get(SERVICE_ADDRESS, 5030) == "hello"


ASK_BY_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(0.5)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    try:
        sock.send(b'anybody?')
        print(sock.recv(100))
    except OSError as error:
        print(type(error).__name__)
"""


def test_only_tcp_is_answered(host: Hypervisor) -> None:
    guest = host.add_guest("guest", "br0")
    hook(host)
    for port in ("53", "5030"):
        said = guest.run(sys.executable, "-c", ASK_BY_UDP, SERVICE_ADDRESS, port).stdout
        assert said in ("ConnectionRefusedError\n", "TimeoutError\n")
    sockets = host.run("ss", "-Hanu", netns="one_tproxy_br0").stdout
    assert sockets == ""


def test_the_hypervisor_itself_has_no_way_into_the_namespace(host: Hypervisor) -> None:
    hook(host)
    with pytest.raises(ProcessError, match=r"ETIMEDOUT|ENETUNREACH|EHOSTUNREACH"):
        host.get(SERVICE_ADDRESS, 5030, timeout=0.5)
    assert "169.254" not in host.run("ip", "-4", "address").stdout
    assert host.run("sysctl", "-n", "net.ipv4.ip_forward", netns="one_tproxy_br0").stdout == "0\n"

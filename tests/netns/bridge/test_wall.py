"""The second wall: the rules inside a bridge's namespace, which the daemon keeps there.

``test_isolation`` tests what the wall lets in.
"""

from __future__ import annotations

import json
import sys

import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.one_bridge import ECHO, ENDPOINT, OneBridge
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.bridge import wall
from tproxy.lab.hypervisor import Hypervisor
from tproxy.model import ServiceKey

NAMESPACE = "one_tproxy_br0"
TABLE = ("inet", "one_tproxy")


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def rules(host: Hypervisor) -> str:
    """All rules of the namespace, with their handles: rules that are loaded again get other ones."""
    return host.run("nft", "-a", "list", "ruleset", netns=NAMESPACE).stdout


def tables(host: Hypervisor) -> list[str]:
    return host.run("nft", "list", "tables", netns=NAMESPACE).stdout.splitlines()


def ports(host: Hypervisor) -> str:
    """The ports that the wall opens, as nft lists them."""
    listed = host.run("nft", "list", "set", *TABLE, "ports", netns=NAMESPACE).stdout
    return listed.partition("elements = { ")[2].partition(" }")[0]


def sysctl(host: Hypervisor, name: str) -> str:
    return host.run("cat", f"/proc/sys/net/ipv4/{name}", netns=NAMESPACE).stdout.strip()


def add_foreign_namespace(host: Hypervisor) -> None:
    """Build what a program builds that only loads maps, and lets no hook run."""
    host.ip(
        f"netns add {NAMESPACE}",
        f"link add br0b type veth peer name br0a netns {NAMESPACE}",
        "link set br0b master br0 up",
    )
    host.ip(
        f"link set br0a address {SERVICE_MAC} up",
        "link set lo up",
        f"address add {SERVICE_ADDRESS}/32 dev br0a",
        "route add default dev br0a",
        netns=NAMESPACE,
    )


@pytest.fixture
def foreign(hypervisor: Hypervisor) -> Hypervisor:
    """Bridge br0 with a guest, as another program serves it: by a map, with a table in the namespace."""
    hypervisor.add_bridge("br0")
    hypervisor.add_guest("guest", "br0")
    hypervisor.add_endpoint(ENDPOINT, 8080, "one")
    add_foreign_namespace(hypervisor)
    hypervisor.run("nft", "add table inet mine; add chain inet mine c", netns=NAMESPACE)
    hypervisor.run(
        "nft",
        "add table ip one_tproxy;"
        "add map ip one_tproxy ep_br0 { type inet_service : ipv4_addr . inet_service; };"
        f"add element ip one_tproxy ep_br0 {{ 80 : {ENDPOINT} . 8080 }}",
    )
    hypervisor.tproxy("start")
    return hypervisor


def test_the_wall_opens_the_service_ports_and_a_warm_hook_changes_nothing(lab: OneBridge) -> None:
    assert ports(lab.host) == "5030"
    names = ("ip_unprivileged_port_start", "tcp_mtu_probing", "tcp_tw_reuse")
    assert [sysctl(lab.host, each) for each in names] == ["0", "1", "1"]
    before = rules(lab.host)
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    lab.host.tproxy("reload")
    assert rules(lab.host) == before


def test_a_reload_opens_and_closes_ports_and_connections_go_on(lab: OneBridge) -> None:
    lab.add_echo()
    assert ports(lab.host) == f"{ECHO}, 5030"
    with_service = Talk(lab.guest, ECHO)
    lab.nft(lab.element("delete", ECHO, 9000), lab.element("add", 5031, 8081))
    lab.host.tproxy("reload")
    assert ports(lab.host) == "5030-5031" or ports(lab.host) == "5030, 5031"
    assert lab.ask(5031) == "two"
    assert with_service.say("still there") == "still there"
    assert (
        "refused"
        in lab.guest.run(
            *(
                sys.executable,
                "-c",
                f"import socket; socket.create_connection(('{SERVICE_ADDRESS}', {ECHO}), 30)",
            ),
            check=False,
        ).stderr
    )
    with_service.end()


def test_a_process_in_the_namespace_can_open_no_connection_to_a_guest(lab: OneBridge) -> None:
    """Such as a relay that was taken over. The guest's answer, a SYN with ACK, is dropped."""
    argv = (sys.executable, str(ENDPOINTS), "echo", lab.guest.address, "9000")
    lab.host.serve(*argv, netns=lab.guest.name)
    dial = f"import socket; socket.create_connection(('{lab.guest.address}', 9000), 2)"
    done = lab.host.run(sys.executable, "-c", dial, netns=NAMESPACE, check=False)
    assert "timed out" in done.stderr
    lab.host.run("nft", "delete", "table", *TABLE, netns=NAMESPACE)
    lab.host.run(sys.executable, "-c", dial, netns=NAMESPACE)


@pytest.mark.parametrize("command", ["hook", "reload", "start"])
@pytest.mark.parametrize(
    "damage",
    [
        "delete table inet one_tproxy",
        "flush chain inet one_tproxy wall",
        "insert rule inet one_tproxy wall accept",
    ],
)
def test_a_wall_that_somebody_changed_is_back_after(lab: OneBridge, damage: str, command: str) -> None:
    lab.host.run("nft", "add table inet mine", netns=NAMESPACE)
    comments = [line.split("comment")[1] for line in rules(lab.host).splitlines() if "comment" in line]
    lab.host.run("nft", damage, netns=NAMESPACE)
    if command == "hook":
        lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    else:
        lab.host.tproxy(command)
    for _ in eventually():
        now = rules(lab.host)
        if all(each.split("#")[0] in now for each in comments) and "\t\taccept" not in now:
            break
    assert ports(lab.host) == "5030"
    assert tables(lab.host) == ["table inet mine", "table inet one_tproxy"]
    assert lab.ask() == "one"


def test_a_namespace_that_is_made_anew_gets_a_wall(lab: OneBridge) -> None:
    lab.host.ip(f"netns del {NAMESPACE}")
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    assert ports(lab.host) == "5030"
    assert lab.ask() == "one"


def test_a_new_daemon_builds_the_walls_of_bridges_that_are_served(lab: OneBridge) -> None:
    lab.host.run("nft", "delete", "table", *TABLE, netns=NAMESPACE)
    lab.host.tproxy("restart")
    assert ports(lab.host) == "5030"
    assert lab.ask() == "one"


def test_a_namespace_of_another_program_has_a_wall_for_as_long_as_it_is_served(foreign: Hypervisor) -> None:
    assert ports(foreign) == "80"
    assert tables(foreign) == ["table inet mine", "table inet one_tproxy"]
    assert foreign.get(SERVICE_ADDRESS, 80, netns="guest") == "one"
    foreign.run("nft", "delete map ip one_tproxy ep_br0")
    foreign.tproxy("reload")
    assert tables(foreign) == ["table inet mine"]


def test_down_removes_the_wall_from_a_namespace_of_another_program(lab: OneBridge) -> None:
    lab.host.tproxy("hook", "down", "--bridge", "br0", "--config", lab.config, "--force")
    add_foreign_namespace(lab.host)
    lab.host.run("nft", "add table inet mine", netns=NAMESPACE)
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config)
    lab.add_bridge("br1")  # the daemon goes on
    assert tables(lab.host) == ["table inet mine", "table inet one_tproxy"]
    lab.host.tproxy("hook", "down", "--bridge", "br0", "--config", lab.config, "--force")
    assert tables(lab.host) == ["table inet mine"]


def test_a_wall_that_cannot_be_built_is_one_line_and_the_bridge_is_served(foreign: Hypervisor) -> None:
    foreign.run("nft", "delete map ip one_tproxy ep_br0")
    foreign.tproxy("reload")
    foreign.run("nft", "add table inet one_tproxy; add chain inet one_tproxy theirs", netns=NAMESPACE)
    foreign.run(
        "nft",
        "add table ip one_tproxy;"
        "add map ip one_tproxy ep_br0 { type inet_service : ipv4_addr . inet_service; };"
        f"add element ip one_tproxy ep_br0 {{ 80 : {ENDPOINT} . 8080 }}",
    )
    line = "bridge br0 is served without the wall in its namespace: table inet one_tproxy in the namespace"
    foreign.tproxy("start")
    for _ in range(2):
        foreign.tproxy("reload")
        assert foreign.get(SERVICE_ADDRESS, 80, netns="guest") == "one"
    assert foreign.path("/var/log/one_tproxy.log").read_text().count(line) == 1
    foreign.run("nft", "delete table inet one_tproxy", netns=NAMESPACE)
    foreign.tproxy("reload")
    for _ in eventually():
        if (
            "bridge br0 has the wall in its namespace now"
            in foreign.path("/var/log/one_tproxy.log").read_text()
        ):
            break
    assert ports(foreign) == "80"


PLAIN = ServiceKey(80), ServiceKey(443)
UDP = (ServiceKey(53, "udp"),)
FURTHER = ServiceKey(80, address="169.254.169.254"), ServiceKey(53, address="10.0.0.53")
FURTHER_UDP = (ServiceKey(53, "udp", "10.0.0.53"),)


@pytest.mark.parametrize("kind", wall.KINDS, ids=str)
@pytest.mark.parametrize(
    "keys", [(), PLAIN, UDP, FURTHER, FURTHER_UDP, PLAIN + UDP + FURTHER + FURTHER_UDP], ids=str
)
def test_each_kind_of_wall_is_found_as_what_was_loaded(
    hypervisor: Hypervisor, kind: wall.Kind, keys: tuple[ServiceKey, ...]
) -> None:
    hypervisor.ip(f"netns add {NAMESPACE}")
    hypervisor.run("nft", wall.load(kind, keys), netns=NAMESPACE)
    listed = hypervisor.run("nft", "-j", "list", "table", kind.family, "one_tproxy", netns=NAMESPACE).stdout
    # Without UDP services, walls that refuse and those that do not are the same.
    same = kind if any(key.protocol == "udp" for key in keys) else kind._replace(refuses=True)
    assert wall.parse(kind.family, json.loads(listed)["nftables"]) == wall.Wall(same, frozenset(keys))

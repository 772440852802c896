"""Security groups and anti-spoofing on a guest's port, together with our guards (docs/security.md).

Each dialect is a way in which a platform writes the rules of a port: OpenNebula's chains and sets, libvirt's
filter "clean-traffic", and nftables rules in the bridge and in the netdev family.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
ALLOWED, OTHER = 5030, 5031
CONFIG = f"""
tproxy:
- {{service_port: {ALLOWED}, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{service_port: {OTHER}, remote_addr: {ENDPOINT}, remote_port: 8080}}
"""

# Seconds without an answer after which a packet counts as dropped. An answer takes milliseconds.
DROPPED = 1.0


class Net:
    """A bridge with a guest in a security group, another guest in none, and their gateway."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        # Without a route to the service it sends to the gateway's MAC, which our guards rewrite.
        self.guest = host.add_guest("guest", "br0", "10.0.0.5/24", route=False, gateway="10.0.0.1")
        self.other = host.add_guest("other", "br0", "10.0.0.6/24")
        self.gateway = host.add_guest("gateway", "br0", "10.0.0.1/24", route=False)
        host.add_endpoint(ENDPOINT, 8080, "hello")
        self.config = host.write("/run/tproxy.yaml", CONFIG)

    def up(self) -> None:
        done = self.host.tproxy("hook", "up", "--bridge", "br0", "--config", self.config)
        assert done.stderr == ""


@pytest.fixture
def net(hypervisor: Hypervisor) -> Net:
    return Net(hypervisor)


def mac(guest: Guest) -> str:
    (link,) = json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)
    address: str = link["address"]
    return address


# The rules that platforms write. Each function replaces the rules that it wrote before.


def opennebula(guest: Guest, ports: list[int]) -> None:
    """VM 3, NIC 0, security group 100, with FILTER_MAC_SPOOFING and FILTER_IP_SPOOFING.

    As OpenNebula writes them (security_groups_iptables.rb). They see bridged packets through br_netfilter.
    """
    host = guest.hypervisor
    host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    names = "opennebula", "one-3-0-i", "one-3-0-o"
    for name in names if "opennebula" in host.run("iptables", "-S").stdout else ():
        host.run("iptables", "-F", name)
    sets = "".join(
        f"{line}\n"
        for line in (
            "create -exist one-3-0-ip-spoofing hash:ip family inet",
            f"add -exist one-3-0-ip-spoofing {guest.address}",
            "create -exist one-3-0-100-o-nr-inet hash:net,port family inet maxelem 65536",
            "flush one-3-0-100-o-nr-inet",
            *(f"add -exist one-3-0-100-o-nr-inet {SERVICE_ADDRESS}/32,tcp:{port}" for port in ports),
        )
    )
    host.run("ipset", "restore", input=sets)
    rules = f"""*filter
:{names[0]} -
:{names[1]} -
:{names[2]} -
-F FORWARD
-A FORWARD -m physdev --physdev-is-bridged -j opennebula
-A opennebula -j ACCEPT
-I opennebula -m physdev --physdev-out {guest.port} --physdev-is-bridged -j one-3-0-i
-I opennebula -m physdev --physdev-in {guest.port} --physdev-is-bridged -j one-3-0-o
-A one-3-0-o -m mac ! --mac-source {mac(guest)} -j DROP
-A one-3-0-o -p udp --source 0.0.0.0/32 --sport 68 --destination 255.255.255.255/32 --dport 67 -j RETURN
-A one-3-0-o -m set ! --match-set one-3-0-ip-spoofing src -j DROP
-A one-3-0-i -m state --state ESTABLISHED,RELATED -j RETURN
-A one-3-0-o -m state --state ESTABLISHED,RELATED -j RETURN
-A one-3-0-o -m set --match-set one-3-0-100-o-nr-inet dst,dst -j RETURN
-A one-3-0-i -j DROP
-A one-3-0-o -j DROP
COMMIT
"""
    host.run("iptables-restore", "--noflush", input=rules)


def bridge_nftables(guest: Guest, ports: list[int]) -> None:
    """Rules in the bridge family, at the same priority as our forward chain."""
    host, port = guest.hypervisor, guest.port
    probe = "table bridge probe { chain c { ct state established accept; }; }\n"
    stateful = host.run("nft", "--check", "-f", "-", input=probe, check=False).returncode == 0
    # On a kernel without bridge conntrack every packet that opens no connection counts as an answer.
    answer = "ct state established,related" if stateful else "tcp flags & (syn | ack) != syn"
    allowed = " ".join(f"ip daddr {SERVICE_ADDRESS} tcp dport {each} accept;" for each in ports)
    host.run(
        "nft",
        "-f",
        "-",
        input=f"""
table bridge sg
delete table bridge sg
table bridge sg {{
    chain spoofing {{
        type filter hook prerouting priority dstnat; policy accept;
        iifname "{port}" ether saddr != {mac(guest)} drop
        iifname "{port}" arp saddr ether != {mac(guest)} drop
        iifname "{port}" arp saddr ip != {guest.address} drop
        iifname "{port}" ip saddr != {guest.address} drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{port}" jump out
        oifname "{port}" jump in
    }}
    chain out {{ ether type arp accept; {answer} accept; {allowed} drop; }}
    chain in {{ ether type arp accept; {answer} accept; drop; }}
}}
""",
    )


def netdev_nftables(guest: Guest, ports: list[int]) -> None:
    """Rules on the port itself, before and behind the bridge, where no rewritten frame passes."""
    answer = "tcp flags & (syn | ack) != syn"  # conntrack does not exist in this family
    allowed = " ".join(f"ip daddr {SERVICE_ADDRESS} tcp dport {each} accept;" for each in ports)
    guest.hypervisor.run(
        "nft",
        "-f",
        "-",
        input=f"""
table netdev sg
delete table netdev sg
table netdev sg {{
    chain out {{
        type filter hook ingress device "{guest.port}" priority 0; policy drop;
        ether saddr != {mac(guest)} drop
        arp saddr ip {guest.address} arp saddr ether {mac(guest)} accept
        ip saddr != {guest.address} drop
        {answer} accept
        {allowed}
    }}
    chain in {{
        type filter hook egress device "{guest.port}" priority 0; policy drop;
        ether type arp accept
        {answer} accept
    }}
}}
""",
    )


def ebtables(guest: Guest, ports: list[int]) -> None:
    """libvirt's "clean-traffic", in table nat at the priority of our prerouting chain, and a final drop."""
    host = guest.hypervisor
    allowed = "\n".join(
        f"-A out -p IPv4 --ip-dst {SERVICE_ADDRESS} --ip-proto tcp --ip-dport {port} -j ACCEPT"
        for port in ports
    )
    host.run(
        "ebtables-restore",
        input=f"""*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:out DROP
-A PREROUTING -i {guest.port} -j out
-A out -s ! {mac(guest)} -j DROP
-A out -p ARP --arp-mac-src ! {mac(guest)} -j DROP
-A out -p ARP --arp-ip-src ! {guest.address} -j DROP
-A out -p ARP -j ACCEPT
-A out -p IPv4 --ip-src ! {guest.address} -j DROP
{allowed}
""",
    )


Dialect = Callable[[Guest, "list[int]"], None]
NEEDED: dict[Dialect, str] = {opennebula: "ipset iptables", ebtables: "ebtables"}
DIALECTS = (opennebula, bridge_nftables, netdev_nftables, ebtables)


@pytest.fixture(params=DIALECTS, ids=lambda each: each.__name__)
def load(request: pytest.FixtureRequest) -> Dialect:
    dialect: Dialect = request.param
    missing = [program for program in NEEDED.get(dialect, "").split() if not shutil.which(program)]
    assert not missing, f"needs {', '.join(missing)}; `make venv` as root installs them"
    return dialect


def assert_dropped(guest: Guest, port: int) -> None:
    # EHOSTUNREACH: the ARP request was dropped too, which the kernel reports after three seconds.
    with pytest.raises(ProcessError, match=r"ETIMEDOUT|EHOSTUNREACH"):
        guest.get(SERVICE_ADDRESS, port, DROPPED)


@pytest.mark.parametrize("first", ["group", "hook"])
def test_a_guest_reaches_the_service_ports_that_its_group_allows_and_no_others(
    net: Net, load: Dialect, first: str
) -> None:
    if first == "hook":
        net.up()
    load(net.guest, [])
    if first == "group":
        net.up()
    assert_dropped(net.guest, ALLOWED)
    load(net.guest, [ALLOWED])
    assert net.guest.get(SERVICE_ADDRESS, ALLOWED) == "hello"
    assert_dropped(net.guest, OTHER)
    assert net.other.get(SERVICE_ADDRESS, OTHER) == "hello"  # this guest is in no group


def test_a_guest_with_a_forged_address_reaches_nothing(net: Net, load: Dialect) -> None:
    net.up()
    load(net.guest, [ALLOWED])
    own = mac(net.guest)
    for address, link in (("10.0.0.77", own), (net.guest.address, "02:00:00:00:00:77")):
        become(net.guest, address, link)
        assert_dropped(net.guest, ALLOWED)
    become(net.guest, net.guest.address, own)
    assert net.guest.get(SERVICE_ADDRESS, ALLOWED) == "hello"
    # The guest without a group may do that.
    become(net.other, "10.0.0.78", "02:00:00:00:00:78")
    assert net.other.get(SERVICE_ADDRESS, ALLOWED) == "hello"


def become(guest: Guest, address: str, link: str) -> None:
    guest.ip(
        f"link set eth0 address {link}",
        "address flush dev eth0",
        f"address add {address}/24 dev eth0",
        "route replace default via 10.0.0.1",
    )
    # For a second the service would still answer to the MAC that it has learnt before, arp(7).
    guest.hypervisor.ip("neigh flush dev br0a", netns="one_tproxy_br0")


@pytest.mark.parametrize("first", ["chains", "hook"])
def test_another_programs_chains_that_accept_everything_do_not_disable_our_guards(
    net: Net, first: str
) -> None:
    # With our own priorities too: of two chains with one priority the kernel runs the newer one first.
    chains = "".join(
        f"chain {hook}{-priority} {{ type filter hook {hook} priority {priority}; accept; }}\n"
        for hook in ("prerouting", "forward")
        for priority in (-400, -300, -200, 0)
    )
    if first == "hook":
        net.up()
    net.host.run("nft", "-f", "-", input=f"table bridge stranger {{\n{chains}}}\n")
    if first == "chains":
        net.up()
    # The guest sends to its gateway's MAC. Without our guards the packets would go there.
    assert net.guest.get(SERVICE_ADDRESS, ALLOWED) == "hello"
    assert net.other.get(SERVICE_ADDRESS, ALLOWED) == "hello"
    claim_the_service(net.guest)
    assert neighbour(net.other) == SERVICE_MAC
    net.host.run("nft", "delete", "table", "bridge", "one_tproxy")
    for _ in eventually():  # the kernel keeps a MAC that it has just learnt for some time
        claim_the_service(net.guest)
        if neighbour(net.other) == mac(net.guest):
            break


def claim_the_service(guest: Guest) -> None:
    guest.ip(f"address replace {SERVICE_ADDRESS}/32 dev eth0")
    guest.run("arping", "-A", "-c", "2", "-I", "eth0", SERVICE_ADDRESS)
    guest.ip(f"address del {SERVICE_ADDRESS}/32 dev eth0")


def neighbour(guest: Guest) -> str:
    """The MAC that the guest has for the service; "" while it looks for it."""
    (entry,) = json.loads(guest.run("ip", "-j", "neigh", "show", SERVICE_ADDRESS).stdout)
    address: str = entry.get("lladdr", "")
    return address

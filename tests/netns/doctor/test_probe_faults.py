"""Faults that a guest meets on its way: `tproxy probe` names them in the first step that is bad."""

from __future__ import annotations

import pytest

from tests.netns.doctor.patient import HEALTHY, Fault, Patient, configuration
from tests.netns.doctor.test_host_faults import output_rule
from tests.netns.program import program

DATAGRAMS = " ".join(program("datagram_endpoint"))
IPV6 = "tproxy_ipv6: true\n"
FAULTS = {
    "no hook brought the bridge up": Fault(
        "ip link add br7 type bridge; ip link set br7 up",
        *("services", "bridge br7 has no services: no hook brought it up"),
        options="br7",
        repair="ip link del br7",
    ),
    "there is no service at the port": Fault(
        ":", "services", "the bridge has no service at port 5031", options="br0:5031", repair=":"
    ),
    "the bridge is down": Fault(
        "ip link set br0 down",
        *("forward", "the bridge does not forward what port tpprobe"),
        repair="ip link set br0 up",
    ),
    "our port left the bridge": Fault(
        "ip link set br0b nomaster",
        *("arp", "nobody answers ARP for 169.254.16.9"),
        repair="tproxy hook up --bridge br0",
    ),
    "another machine has the service address": Fault(
        "nft delete table bridge one_tproxy; ip -n guest address add 169.254.16.9/32 dev eth0",
        *("arp", "answers ARP for 169.254.16.9"),
        repair="ip -n guest address del 169.254.16.9/32 dev eth0; tproxy hook up --bridge br0",
    ),
    "the gateway does not answer": Fault(
        ":",
        *("gateway", "the gateway 10.0.0.99 does not answer ARP"),
        options="br0 --gateway 10.0.0.99",
        repair=":",
    ),
    "guards do not redirect what is sent to a gateway": Fault(
        "nft delete table bridge one_tproxy",
        *("connect", "no answer within 3 s"),
        repair="tproxy hook up --bridge br0",
    ),
    "something drops TCP": Fault(
        "nft 'add table bridge other;"
        " add chain bridge other last { type filter hook forward priority 9; policy accept; };"
        " add rule bridge other last ip protocol tcp drop'",
        *("connect", "something drops TCP that lets ARP and ping pass"),
        repair="nft delete table bridge other",
    ),
    "the daemon was not told of a port": Fault(
        "nft add element ip one_tproxy ep_br0 '{ 6001 : 10.11.12.13 . 8080 }'",
        *("connect", "connection refused: nothing listens on the port"),
        options="br0:6001",
        repair="tproxy refresh",
    ),
    "the relay is stopped": Fault(
        "kill -STOP $(process one_tproxy_br0)",
        *("answer", "no worker took the connection: guests wait"),
        repair="pkill -CONT -f '^one_tproxy_br0 *$' || :",
    ),
    "the endpoint refuses": Fault(
        f"services {configuration(9999)}",
        *("endpoint", "endpoint 10.11.12.13:9999 refuses the connection"),
        repair=HEALTHY,
    ),
    "the endpoint refuses datagrams": Fault(
        f"services {configuration(9999, options=', protocol: udp')}",
        *("endpoint", "endpoint 10.11.12.13:9999 refuses datagrams"),
        repair=HEALTHY,
    ),
    "something drops UDP": Fault(
        f"later ready {DATAGRAMS} echo 10.11.12.13 7000;"
        f" services {configuration(7000, options=', protocol: udp')};"
        " nft 'add table bridge other;"
        " add chain bridge other last { type filter hook forward priority 9; policy accept; };"
        " add rule bridge other last ip protocol udp drop'",
        *("datagram", "no worker took the datagram: something drops it on the way"),
        repair=f"nft delete table bridge other; kill $(cat /run/later.pid); {HEALTHY}",
    ),
    "something drops IPv6": Fault(
        f"services {configuration(more=IPV6)};"
        " nft 'add table bridge other;"
        " add chain bridge other last { type filter hook forward priority 9; policy accept; };"
        " add rule bridge other last meta protocol ip6 drop'",
        *("neighbour", "nobody answers neighbour solicitations for fe80::a9fe:1009"),
        repair=f"nft delete table bridge other; {HEALTHY}",
    ),
    "the worker is refused": Fault(
        output_rule("meta skuid 1900000000-1904194304 tcp dport 8080 reject with tcp reset"),
        *("answer", "reset: "),
        repair="nft delete table inet own",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_the_first_bad_step(patient: Patient, name: str) -> None:
    patient.suffer(FAULTS[name], probe=True)


def test_a_daemon_that_is_away_is_named_where_guards_know_ports(patient: Patient) -> None:
    """Where the kernel has ``meta ibrname``, guards know bridges, and a new guest needs no daemon."""
    guarded = patient.host.run("nft", "list", "set", "bridge", "one_tproxy", "guarded").stdout
    if '"br0"' in guarded:
        pytest.skip("this kernel has meta ibrname")
    fault = Fault(
        "kill -KILL $(process one_tproxy) $(process tproxy-spawner)",
        *("guards", "the guards do not know the new port"),
    )
    patient.suffer(fault, probe=True)

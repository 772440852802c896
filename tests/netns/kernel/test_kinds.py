"""Ports of each kind of link that can be a port of a bridge: those that lead off the host are uplinks.

Small kernels have few kinds. So this also runs on a machine with Debian's kernel (tests/vm/choice.py), where
all but one have to be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.contract import quoted, table
from tests.netns.operations.test_hook import CONFIG, up
from tproxy.kernel import kinds
from tproxy.lab.hypervisor import Hypervisor

ROOT = Path(__file__).parents[3]
MACHINE = os.environ.get("TPROXY_MACHINE") == "yes"
MODULES = (
    *("ip_gre", "ip6_gre", "macsec", "batman_adv", "l2tp_eth", "l2tp_ip", "team", "bonding", "geneve"),
    *("vxlan", "dummy", "macvlan", "hsr", "ifb", "8021q", "tun"),
)

BASES = """
for each in a b c d e; do ip link add base$each type veth peer name far$each; ip link set base$each up; done
ip address add 192.0.2.1/24 dev basea
ip address add fd00::1/64 dev basea nodad"""

# How to make a link "port" of each kind.
TUNNEL = "local 192.0.2.1 remote 192.0.2"
UPLINKS = {
    "gretap": f"ip link add port type gretap {TUNNEL}.2",
    "erspan": f"ip link add port type erspan seq key 5 {TUNNEL}.3 erspan_ver 1 erspan 1",
    "ip6gretap": "ip link add port type ip6gretap local fd00::1 remote fd00::2",
    "ip6erspan": "ip link add port type ip6erspan seq key 6 local fd00::1 remote fd00::3"
    " erspan_ver 1 erspan 1",
    "vxlan": "ip link add port type vxlan id 5 remote 192.0.2.2 dstport 4789",
    "geneve": "ip link add port type geneve id 5 remote 192.0.2.2",
    "l2tpeth": f"ip l2tp add tunnel tunnel_id 1 peer_tunnel_id 1 encap ip {TUNNEL}.2;"
    "ip l2tp add session name port tunnel_id 1 session_id 1 peer_session_id 1",
    "macsec": "ip link add link baseb port type macsec",
    "batadv": "ip link add port type batadv",
    "bond": "ip link add port type bond",
    "team": "ip link add port type team",
    "macvlan": "ip link add link basec port type macvlan mode bridge",
    "vlan": "ip link add link basec name port type vlan id 7",
    "hsr": "ip link add port type hsr slave1 based slave2 basee version 1",
    "dummy": "ip link add port type dummy",
    "ifb": "ip link add port type ifb",
}
GUESTS = {"veth": "ip link add port type veth peer name farf", "tun": "ip tuntap add port mode tap"}

RECOGNISE = """
import json, sys
sys.path.insert(0, "drivers/opennebula")
import tproxy_hook
from tproxy.kernel import kinds, links
ports = links.ports("br0")
print(json.dumps([sorted(ports), sorted(kinds.uplinks("br0", ports)), sorted(tproxy_hook.uplinks("br0"))]))"""


def test_the_contract_has_each_kind() -> None:
    found = table("Uplinks", "kind").rows
    named = {
        answer: {kind for row in found if row[1] == answer for kind in quoted(row[0])}
        for answer in ("uplink", "guest")
    }
    assert named["uplink"] == kinds.UPLINK_KINDS | kinds.UPLINK_TYPES
    assert named["guest"] == kinds.GUEST_KINDS
    assert found[-1][:2] == ["any other", "guest"]


def test_ports_that_lead_off_the_host_are_recognised_by_their_kind(hypervisor: Hypervisor) -> None:
    if MACHINE:
        subprocess.run(["modprobe", "-a", *MODULES], check=False)
    config = hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.add_bridge("br0")
    hypervisor.run("sh", "-euc", BASES)
    made, lacking = set(), {}
    for number, (kind, script) in enumerate({**UPLINKS, **GUESTS}.items()):
        name = f"p{number}{kind}"
        attach = f"ip link set port name {name}; ip link set {name} master br0"
        done = hypervisor.run("sh", "-euc", f"{script}; {attach}", check=False)
        if done.returncode == 0:
            made.add(name)
        else:
            lacking[kind] = done.stderr
            hypervisor.run("sh", "-c", f"ip link del port; ip link del {name}", check=False)
    if MACHINE:
        assert lacking.keys() <= {"hsr"}, lacking  # Debian's kernel has no hsr
    assert {"ifb", "veth"}.isdisjoint(lacking)
    found = hypervisor.run("sh", "-c", f"cd {ROOT}; {sys.executable} -c '{RECOGNISE}'").stdout
    ports, ours, of_opennebula = map(set, json.loads(found))
    assert ports == made
    guests = {name for name in made if name.lstrip("p0123456789") in GUESTS}
    assert ours == of_opennebula == made - guests

    # The guards keep the service from them.
    assert up(hypervisor, "br0", config).stderr == ""
    elements = hypervisor.run("nft", "list", "set", "bridge", "one_tproxy", "uplinks").stdout
    assert {name for name in made if f'"{name}" comment "bridge=br0"' in elements} == made - guests

"""Text that we write against the nftables that is here: any order of changes ends as it was meant."""

from __future__ import annotations

import sys

import pytest

from tproxy.lab.hypervisor import Hypervisor

# Runs on the stand-in: random changes to guards and maps of bridges whose names are also words of nft's, and
# after each a look whether all that was meant is there, and nothing else.
WALK = """
import random, sys
from tproxy.bridge import guards, nftables, service_map
from tproxy.bridge.guards import Guard
from tproxy.model import BridgeNames, Endpoint, Network, Service, ServiceMap

chance = random.Random(int(sys.argv[1]))
BRIDGES = ["br0", "map", "drop", "10", "a.b-c.10", "-x", "_", "fifteen.bytes-x", "comment", "0x1f"]
PORTS = ["vnet0", "accept", "9", "eth0.7", "-", "return"]
meant_guards, meant_maps = {}, {}

def a_guard(bridge):
    own = {BridgeNames(bridge).veth_bridge}
    # A port is on one bridge at a time, as on any host, and an uplink is guarded for one.
    taken = {port for b, g in meant_guards.items() if b != bridge for port in (*g.ports, *g.uplinks)}
    free = [port for port in PORTS if port not in taken]
    uplinks = {port: chance.random() < 0.5 for port in free if chance.random() < 0.3}
    return Guard(bridge, frozenset(own | {port for port in free if chance.random() < 0.4}), uplinks)

def a_map(bridge):
    # Bytes of all kinds, and more of them than a comment holds.
    words = ["", "blue", 'q"\\'; }{ #\\n\\\\', "\\udcff\\u00e9", "x" * 200]
    services = {}
    for port in chance.sample([1, 22, 80, 5030, 65535], chance.randrange(5)):
        endpoint = Endpoint(f"10.0.0.{chance.randrange(3)}", chance.choice([1, 80, 65535]))
        services[port] = Service(port, endpoint, chance.choice(words), chance.choice([5.0, 0.25, 300.0]))
    network = Network(chance.choice(words), chance.choice(words))
    return service_map.storable(ServiceMap(bridge, services, network))

def check():
    found = nftables.read_guards()
    assert {b for b in found if found[b].anything} == set(meant_guards), (set(found), set(meant_guards))
    for bridge, guard in meant_guards.items():
        assert guards.load(guard, found[bridge]) == [], bridge
        assert guards.load(guard, nftables.read_guard(bridge)) == [], bridge
    assert {each.bridge: each for each in nftables.read_maps()} == meant_maps
    for bridge in BRIDGES:
        assert nftables.read_map(bridge) == meant_maps.get(bridge), bridge

for _ in range(60):
    bridge = chance.choice(BRIDGES)
    match chance.randrange(5):
        case 0 | 1:
            guard = a_guard(bridge)
            nftables.transaction(guards.load(guard, nftables.read_guard(bridge)))
            meant_guards[bridge] = guard
        case 2:
            nftables.transaction(guards.unload(nftables.read_guard(bridge)))
            meant_guards.pop(bridge, None)
        case 3:
            wanted, found = a_map(bridge), nftables.read_map(bridge)
            commands = service_map.change_map(found, wanted) if found else service_map.add_map(wanted)
            nftables.transaction(commands)
            meant_maps[bridge] = wanted
        case 4 if bridge in meant_maps:
            nftables.transaction(service_map.delete_map(bridge))
            del meant_maps[bridge]
    check()
for bridge in list(meant_guards):
    nftables.transaction(guards.unload(nftables.read_guard(bridge)))
for bridge in list(meant_maps):
    nftables.transaction(service_map.delete_map(bridge))
nftables.transaction(nftables.empty_tables())
assert nftables._list("list ruleset")[1:] == []
"""


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_changes_ends_as_it_was_meant(hypervisor: Hypervisor, seed: int) -> None:
    hypervisor.run(sys.executable, "-c", WALK, str(seed))


def test_what_we_load_can_be_saved_and_loaded_again_by_nft(hypervisor: Hypervisor) -> None:
    """As `nft list ruleset >file` and a restore at boot, or a firewall manager, do."""
    hypervisor.add_bridge("br0")
    entry = "{service_port: 5030, remote_addr: 10.11.12.13, remote_port: 1, name: web, connect_timeout: 1.5}"
    config = hypervisor.write("/run/tproxy.yaml", f"tproxy: [{entry}]\n")
    up = ("hook", "up", "--bridge", "br0", "--network", "b l;u\"e'", "--uplink", "eth9", "--config", config)
    hypervisor.tproxy(*up)
    before = hypervisor.run("nft", "list", "ruleset").stdout
    hypervisor.write("/run/saved.nft", "flush ruleset\n" + before)
    hypervisor.run("nft", "-f", "/run/saved.nft")
    assert hypervisor.run("nft", "list", "ruleset").stdout == before
    handles = hypervisor.run("nft", "-a", "list", "ruleset").stdout
    hypervisor.tproxy(*up)
    assert hypervisor.run("nft", "-a", "list", "ruleset").stdout == handles, "found to be ours, and in order"

"""Change guards and maps at random, and check them after each change: ``nftables_walk.py SEED``.

After each change nftables has to hold everything that was loaded, and nothing else. Some of the bridges have
names that are words of nft's language. Fails with an AssertionError.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.bridge import comments, guards, map_commands, nftables
from tproxy.bridge.guards import Guard
from tproxy.model import PROTOCOLS, Endpoint, Network, Service, ServiceKey, ServiceMap
from tproxy.names import BridgeNames

STEPS = 20
BRIDGES = ["br0", "map", "drop", "10", "a.b-c.10", "-x", "_", "fifteen.bytes-x", "comment", "0x1f"]
PORTS = ["vnet0", "accept", "9", "eth0.7", "-", "return"]
# Bytes of all kinds, and more of them than a comment holds.
WORDS = ["", "blue", "q\"\\'; }{ #\n\\", "\udcff\u00e9", "x" * 200]


class Walk:
    """What was loaded so far, and the changes to it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.guards: dict[str, Guard] = {}
        self.maps: dict[str, ServiceMap] = {}

    def step(self) -> None:
        bridge = self.chance.choice(BRIDGES)
        match self.chance.randrange(5):
            case 0 | 1:
                self.load_guard(bridge)
            case 2:
                self.unload_guard(bridge)
            case 3:
                self.load_map(bridge)
            case 4 if bridge in self.maps:
                self.delete_map(bridge)

    def load_guard(self, bridge: str) -> None:
        guard = self.guards[bridge] = self.random_guard(bridge)
        nftables.transaction(guards.load(guard, nftables.read_guard(bridge)))

    def unload_guard(self, bridge: str) -> None:
        nftables.transaction(guards.unload(nftables.read_guard(bridge)))
        self.guards.pop(bridge, None)

    def load_map(self, bridge: str) -> None:
        wanted = self.maps[bridge] = self.random_map(bridge)
        found = nftables.read_map(bridge)
        nftables.transaction(
            map_commands.change_map(found, wanted) if found else map_commands.add_map(wanted)
        )

    def delete_map(self, bridge: str) -> None:
        nftables.transaction(map_commands.delete_map(bridge))
        del self.maps[bridge]

    def random_guard(self, bridge: str) -> Guard:
        # A port is on one bridge at a time, as on any host, and an uplink is guarded for one bridge.
        others = [guard for name, guard in self.guards.items() if name != bridge]
        taken = {port for guard in others for port in (*(guard.ports or ()), *guard.uplinks)}
        free = [port for port in PORTS if port not in taken]
        uplinks = {port: self.chance.random() < 0.5 for port in free if self.chance.random() < 0.3}
        ports = {port for port in free if self.chance.random() < 0.4}
        return Guard(bridge, frozenset({BridgeNames(bridge).veth_bridge, *ports}), uplinks)

    def random_map(self, bridge: str) -> ServiceMap:
        services = {}
        for port in self.chance.sample([1, 22, 80, 5030, 65535], self.chance.randrange(5)):
            endpoint = Endpoint(f"10.0.0.{self.chance.randrange(3)}", self.chance.choice([1, 80, 65535]))
            name, timeout = self.chance.choice(WORDS), self.chance.choice([5.0, 0.25, 300.0])
            options: list[Any] = [self.chance.choice([0, 7, 1_000_000]) for _ in range(7)]
            options += [self.chance.choice(["", "v2"]), self.chance.choice(["first", "least"])]
            key = self.random_key(port)
            services[key] = Service(key, endpoint, name, timeout, *self.chance.choice([[], options]))
        network = Network(self.chance.choice(WORDS), self.chance.choice(WORDS))
        return comments.storable(ServiceMap(bridge, services, network))

    def random_key(self, port: int) -> ServiceKey:
        if self.chance.random() < 0.5:
            return ServiceKey(port)
        address = self.chance.choice([SERVICE_ADDRESS, "169.254.169.254"])
        return ServiceKey(port, self.chance.choice(PROTOCOLS), address, self.chance.choice([0, 0, 3]))

    def check(self) -> None:
        found = nftables.read_guards()
        assert {bridge for bridge in found if found[bridge].anything} == set(self.guards)
        for bridge, guard in self.guards.items():
            assert guards.load(guard, found[bridge]) == [], bridge
            assert guards.load(guard, nftables.read_guard(bridge)) == [], bridge
        assert {each.bridge: each for each in nftables.read_maps()} == self.maps
        for bridge in BRIDGES:
            assert nftables.read_map(bridge) == self.maps.get(bridge), bridge


def main(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
        walk.check()
    for bridge in list(walk.guards):
        walk.unload_guard(bridge)
    for bridge in list(walk.maps):
        walk.delete_map(bridge)
    nftables.delete_empty_tables()
    assert nftables._list("list ruleset")[1:] == []


if __name__ == "__main__":
    main(int(sys.argv[1]))

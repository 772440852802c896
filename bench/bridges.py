"""Hosts with several bridges, for what more than one worker gives: tproxy, and HAProxy pairs.

Each bridge has guests, and the host has an endpoint (nginx and iperf3) for each bridge, so that one endpoint
does not limit all. All bridges have the services of all endpoints; a load chooses by port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from bench import costs
from bench.checkout import HERE, Checkout
from bench.lab import (
    BULK_PORT,
    ENDPOINT,
    HTTP_PORT,
    NAMES,
    add_endpoints,
    add_loader,
    add_relay_namespace,
    ports_of,
)
from bench.peers import Peer, start_haproxy, tproxy_config, tproxy_processes
from tproxy.lab.hypervisor import Guest, Hypervisor

Found = TypeVar("Found")

# The link of a guest around tproxy and bridge, straight to the root namespace and the endpoints there.
DIRECT, _DIRECT_HOST, _DIRECT_GUEST = "direct", "10.98.0.1", "10.98.0.2"

CONFIG = "/run/tproxy.yaml"


class Client(NamedTuple):
    """A guest that makes load, and the number of the endpoint that serves it."""

    guest: Guest
    endpoint: int

    @property
    def http(self) -> int:
        """The service port of the endpoint's nginx."""
        return HTTP_PORT + self.endpoint

    @property
    def bulk(self) -> int:
        """The service port of the endpoint's iperf3."""
        return BULK_PORT + self.endpoint


@dataclass(frozen=True)
class Site(Peer):
    """A peer on a host with several bridges; ``guests`` are those of each bridge."""

    guests: Sequence[Sequence[Guest]]

    def workers(self) -> list[int]:
        """The process ids of tproxy's workers."""
        return costs.titled(self.host, "tproxy-worker")


def bridges(count: int) -> list[str]:
    return [f"br{number}" for number in range(count)]


def build_tproxy(
    host: Hypervisor,
    guests: Sequence[int],
    *,
    name: str,
    workers: int | None = None,
    code: Checkout = HERE,
) -> Site:
    """tproxy on so many bridges, each with that number of guests."""
    there = furnish(host, guests)
    config = host.write(CONFIG, tproxy_config(ports_of(len(guests)), workers))
    for bridge in bridges(len(guests)):
        code.tproxy(host, "hook", "up", "--bridge", bridge, "--config", config)
    return Site(name, host, there[0][0], partial(tproxy_processes, host), NAMES.namespace, there)


def build_haproxy(host: Hypervisor, guests: Sequence[int], *, name: str, threads: int) -> Site:
    """One HAProxy with so many threads in the root namespace, and one for each bridge."""
    there = furnish(host, guests)
    relays = {bridge: add_relay_namespace(host, bridge, f"relay-{bridge}") for bridge in bridges(len(guests))}
    roots = start_haproxy(host, relays, ports_of(len(guests)), threads)
    find = partial(costs.family, host, roots)
    return Site(name, host, there[0][0], find, next(iter(relays.values())), there)


def furnish(host: Hypervisor, guests: Sequence[int]) -> list[list[Guest]]:
    """Add bridges, their guests, an endpoint for each bridge, and the direct link of the first guest.

    The first guests of all bridges have the same address, the second ones the next, and so on.
    """
    there = []
    for bridge, count in zip(bridges(len(guests)), guests, strict=True):
        host.add_bridge(bridge)
        there.append(
            [
                add_loader(host, f"{bridge}-{number}", bridge, f"10.0.0.{5 + number}/24")
                for number in range(count)
            ]
        )
    add_endpoints(host, count=len(guests))
    add_direct_link(host, there[0][0])
    return there


def add_direct_link(host: Hypervisor, guest: Guest) -> None:
    host.ip(
        f"link add name {DIRECT} type veth peer name {DIRECT} netns {guest.name}",
        f"address add {_DIRECT_HOST}/30 dev {DIRECT}",
        f"link set dev {DIRECT} up",
    )
    guest.ip(
        f"address add {_DIRECT_GUEST}/30 dev {DIRECT}",
        f"link set dev {DIRECT} up",
        f"route add {ENDPOINT} via {_DIRECT_HOST}",
    )


def together(clients: Sequence[Client], job: Callable[[Client], Found]) -> list[Found]:
    """Do a job for all clients at the same time; raises what one of them raises."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(job, clients))

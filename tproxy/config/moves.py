"""Services by host name whose address changed. Pure.

A service moves only from an address that its name had to one that the name has now. So a service whose map
somebody changed, or whose entry is in another file, stays as it is. A service also stays while its address is
one of several that the name has: hooks choose the lowest, but moving a service that works helps nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tproxy.config.services import Config
from tproxy.model import Endpoint, Network, Service, is_ipv4

# The usable addresses of host names, the lowest first; a name for which there was no answer is missing.
Addresses = Mapping[str, Sequence[str]]

Moves = Mapping[int, tuple[Service, Service]]  # the service before and after, by service port


def moves(
    config: Config, network: Network, services: Mapping[int, Service], before: Addresses, now: Addresses
) -> Moves:
    """Return those of a network's ``services`` that move, by what names had ``before`` and have ``now``."""
    found: dict[int, tuple[Service, Service]] = {}
    decided: set[int] = set()  # the first entry that can be used decides about its port, as in ``services``
    for entry in config.entries:
        name, port = entry.remote_addr, entry.service_port
        if port in decided or not entry.applies_to(network):
            continue
        if not is_ipv4(name) and name not in before and name not in now:
            continue
        decided.add(port)
        service, addresses = services.get(port), now.get(name)
        if service is None or not addresses or service.endpoint.port != entry.remote_port:
            continue
        address = service.endpoint.address
        if address in before.get(name, ()) and address not in addresses:
            found[port] = service, service._replace(endpoint=Endpoint(addresses[0], entry.remote_port))
    return found

"""Services by host name whose addresses changed. Pure.

A service moves only from the addresses that its names had to those that they have now. So a service whose map
somebody changed, or whose entry is in another file, stays as it is. A service that no name gave an address
before is added when one has an address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tproxy.addresses import is_endpoint
from tproxy.config.services import Config, Entry
from tproxy.config.union import Services, divide, view
from tproxy.model import MOST_ENDPOINTS, Endpoint, Network, Service, ServiceKey

# The usable addresses of host names, in order; a name for which there was no answer is missing.
Addresses = Mapping[str, Sequence[str]]

# The service before, None where there was none, and after, by key.
Moves = Mapping[ServiceKey, tuple[Service | None, Service]]


def moves(
    config: Config,
    network: Network,
    services: Mapping[ServiceKey, Service],
    before: Addresses,
    now: Addresses,
) -> Moves:
    """Return those of a network's ``services`` that move, by what names had ``before`` and have ``now``."""
    found: dict[ServiceKey, tuple[Service | None, Service]] = {}
    decided: set[ServiceKey] = set()  # the first entry that can be used decides about its key
    for entry in config.entries:
        keys = [key for key in entry.keys if key not in decided] if entry.applies_to(network) else []
        if not keys:
            continue
        had, has = _addresses(entry, before), _addresses(entry, now)
        if not had and not has:
            continue
        decided.update(keys)
        if not has or all(map(is_endpoint, entry.remote_addr)):
            continue
        for key in keys:
            service = services.get(key)
            if service is None:
                if not had:
                    new = Service(key, Endpoint(has[0], entry.remote_port), **entry.options)
                    found[key] = None, new.led_to(has, entry.remote_port)
                continue
            if service.endpoint.port != entry.remote_port and not service.endpoint.is_unix:
                continue
            # An older version, or a hook while a name server was silent, chose some of the addresses only.
            addresses = [each.address for each in service.candidates]
            if addresses != has and set(addresses) <= {*had}:
                found[key] = service, service.led_to(has, entry.remote_port)
    return found


def move(due: Mapping[int, Moves], services: Services) -> dict[ServiceKey, Service]:
    """Return the services of a bridge after these moves, which are by the order of a network.

    A service that is not the old one any more is left alone.
    """
    views = {order: view(services, order) for order in due}
    for order, found in due.items():
        has = views[order]
        has |= {key: new for key, (old, new) in found.items() if has.get(key) == old}
    others = {key: each for key, each in services.items() if key.network and key.network not in due}
    return {**divide(views), **others}


def _addresses(entry: Entry, known: Addresses) -> list[str]:
    """All addresses of an entry in order, each once."""
    found = (
        address
        for each in entry.remote_addr
        for address in ((each,) if is_endpoint(each) else known.get(each, ()))
    )
    return [*found][:MOST_ENDPOINTS]

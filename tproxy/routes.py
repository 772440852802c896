"""Routes: what leads from outside to a port of a guest. The immutable types that all packages use.

A route is known on the wire, and to the gateway, by its id. In nftables and in workers it has a number that
follows from the id. To workers it is a service whose endpoint is the guest's port, under a key that no
service can have. So limits, time-outs and counts of routes are those of services.
"""

from __future__ import annotations

try:  # as in ``names``
    from _blake2 import blake2s
except ImportError:
    from hashlib import blake2s

from tproxy.model import TCP, Endpoint, Service, ServiceKey
from tproxy.typed import NamedTuple

# No guest has it, and no service is there. It stands for a guest's address that is not known.
NOWHERE = "0.0.0.0"

MOST_ID = 64  # characters of an id, without what TLS adds
OF_TLS = "/tls"  # ends the id of the second part of a route: the one for TLS that the guest ends

# Any port: keys of counters need one.
_KEY_PORT = 1


class Route(NamedTuple):
    """One port of a guest, on one bridge.

    ``service`` has the address and port to dial, and the options. ``mac`` is the guest's MAC address, and
    ``place`` the port of the bridge behind which the guest is; each may be empty. Without an address the
    guest is looked for by these. ``expires`` is in seconds since 1970; 0: never.
    """

    id: str
    service: Service
    mac: str = ""
    place: str = ""
    expires: int = 0

    @property
    def number(self) -> int:
        return self.service.key.network

    @property
    def endpoint(self) -> Endpoint:
        """The guest's address and port; NOWHERE where the address is not known."""
        return self.service.endpoint

    @property
    def target(self) -> str:
        """The guest and its port, for a message."""
        known = self.endpoint.address
        shown = f"[{known}]" if ":" in known else known
        words = [*([shown] if known != NOWHERE else []), *filter(None, (self.mac, self.place))]
        return f"{'/'.join(words)}:{self.endpoint.port}"

    def has_expired(self, now: float) -> bool:
        """Whether no more streams may come; ``now`` is in seconds since 1970."""
        return 0 < self.expires <= now

    def at(self, address: str) -> Route:
        """Return the route with this address of the guest."""
        endpoint = Endpoint(address, self.endpoint.port)
        return self._replace(service=self.service._replace(endpoint=endpoint))


def number_of(id_: str) -> int:
    """Return the number of the route with this id: 1 to 2**32 - 1."""
    return int.from_bytes(blake2s(id_.encode(), digest_size=4).digest(), "big") or 1


def key_of(number: int) -> ServiceKey:
    """Return the key under which workers serve and count the route with this number."""
    return ServiceKey(_KEY_PORT, TCP, NOWHERE, number)


def is_route(key: ServiceKey) -> bool:
    """Whether a key is that of a route."""
    return key.address == NOWHERE

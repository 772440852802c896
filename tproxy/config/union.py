"""The services of a bridge on which there are guests of several networks.

Each guest gets the services of its own network. What all networks have alike is everybody's, under a key with
the network 0 (``model.ServiceKey``); all else has keys with the ``order`` of its network. ``view`` and
``divide`` go from the one form to the other. ``Offer`` holds what one configuration file gives to any
networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.config import resolver
from tproxy.config.services import Config, NoAddress, Problem, choose, host_names
from tproxy.errors import to_ascii
from tproxy.model import Network, Service, ServiceKey, ServiceMap
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.routes import Route

Services = Mapping[ServiceKey, Service]


class Union:  # no named tuple, because each of those takes a hook longer to make
    """The services of a bridge, and the problems of the file's entries for them."""

    def __init__(
        self,
        services: dict[ServiceKey, Service],
        problems: list[Problem],
        *,
        ipv6: bool = False,
        routes: Mapping[int, Route] | None = None,
    ) -> None:
        self.services = services
        self.problems = problems
        self.ipv6 = ipv6
        self.routes = routes or {}

    def applied(self, found: ServiceMap) -> ServiceMap:
        """Return the map with these services in the place of its own."""
        return found._replace(services=self.services, ipv6=self.ipv6, routes=self.routes)

    @property
    def divided(self) -> bool:
        """Whether the networks of the bridge have different services."""
        return any(key.network for key in self.services)


def view(services: Services, order: int) -> dict[ServiceKey, Service]:
    """Return the services of a network of a bridge, each under the key that it has for everybody."""
    found = {key: each for key, each in services.items() if not key.network}
    for key, each in services.items():
        if key.network == order:
            found[key.listener] = each._replace(key=key.listener)
    return found


def divide(views: Mapping[int, Services]) -> dict[ServiceKey, Service]:
    """Return the services of a bridge from those of its networks, by order: the inverse of ``view``."""
    if len(views) == 1:
        return dict(next(iter(views.values())))
    services: dict[ServiceKey, Service] = {}
    for key in dict.fromkeys(key for each in views.values() for key in each):
        found = [each.get(key) for each in views.values()]
        if found[0] is not None and all(each == found[0] for each in found):
            services[key] = found[0]
            continue
        for order, service in zip(views, found, strict=True):
            if service is not None:
                own = key._replace(network=order)
                services[own] = service._replace(key=own)
    return services


class Offer:
    """The services that a configuration file gives to networks.

    ``look_up`` asks name servers, which can take seconds; the other methods ask nobody.
    """

    def __init__(self, config: Config, resolve: resolver.Resolver = resolver.addresses_of) -> None:
        self.config = config
        self._resolve = resolve
        self._addresses: dict[str, list[str] | NoAddress] = {}

    def look_up(self, networks: Iterable[Network]) -> None:
        """Look up the host names that these networks need, and that were not looked up yet."""
        missing = self._missing(networks)
        if missing:
            self._addresses |= resolver.addresses(missing, self._resolve)

    def is_known(self, networks: Iterable[Network]) -> bool:
        """Whether all host names that these networks need were looked up."""
        return not self._missing(networks)

    def union(self, orders: Mapping[Network, int], found: ServiceMap | None = None) -> Union:
        """Return the services of a bridge with these networks (``ServiceMap.orders``).

        ``found`` is the bridge's map. While nobody answers for a host name, its services keep the endpoints
        that they have there for the same network.
        """
        views: dict[int, Services] = {}
        problems: dict[Problem, None] = {}
        for network, order in orders.items():
            known = held_by(self.config, network, found) if found is not None else {}
            views[order], said = choose(self.config, network, self._addresses, known.get)
            problems |= dict.fromkeys(said)
        routes: dict[int, Route] = {}
        if self.config.routes:
            from tproxy.config.routes import routes_for  # few files have routes

            routes, wrong = routes_for(self.config.routes, orders, ipv6=self.config.ipv6)
            problems |= dict.fromkeys(wrong)
        return Union(divide(views), list(problems), ipv6=self.config.ipv6, routes=routes)

    def _missing(self, networks: Iterable[Network]) -> list[str]:
        names = dict.fromkeys(name for each in networks for name in host_names(self.config, each))
        return [name for name in names if name not in self._addresses]


def held_by(config: Config, network: Network, found: ServiceMap) -> Services:
    """The services of a map that it has for this network.

    In the map of an older version, which gave all guests the services of all networks, the first network that
    wanted a port held it.
    """
    orders = found.orders
    if network not in orders:
        return {}
    earlier = [each for each, order in orders.items() if order < orders[network]]

    def entries(of: Network, key: ServiceKey) -> list[tuple[str, int]]:
        return [
            (each.origin, each.number) for each in config.entries if each.applies_to(of) and key in each.keys
        ]

    def taken(key: ServiceKey) -> bool:
        own = entries(network, key)
        return any(theirs and theirs != own for theirs in (entries(each, key) for each in earlier))

    return {
        key: each
        for key, each in view(found.services, orders[network]).items()
        if key._replace(network=orders[network]) in found.services or not taken(key)
    }


def in_words(network: Network) -> str:
    """A network for a message, as one line of ASCII."""
    number = f"id {to_ascii(network.id)}" if network.id else ""
    if network.name:
        return f"network {network.name!a}" + (f" ({number})" if number else "")
    return f"network {number}" if number else "no network"

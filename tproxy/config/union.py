"""The services of a bridge on which there are guests of several networks: the union of what each may use.

All guests of a bridge reach the same service address, so they share its ports. Where two networks want one
port for different services, the network that came first keeps it until its last guest has gone. ``merge``
decides that; ``Offer`` holds what one configuration file gives to any networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.config import resolver
from tproxy.config.services import Config, NoAddress, Problem, choose, host_names
from tproxy.errors import to_ascii
from tproxy.model import Network, Service, ServiceKey, ServiceMap

# The two classes are no named tuples, because each of those takes a hook longer to make.


class Contradiction:
    """Two networks of a bridge that want one service port for different services.

    ``holder`` keeps the port for the service ``kept``; ``other`` is refused its service.
    """

    def __init__(self, holder: Network, kept: Service, other: Network, refused: Service) -> None:
        self.key = kept.key
        self.holder, self.kept = holder, kept
        self.other, self.refused = other, refused

    def __str__(self) -> str:
        return (
            f"port {self.key.in_words} leads to {_shown(self.kept)} "
            f"for {in_words(self.holder)}, which came first; "
            f"{in_words(self.other)} wants {_shown(self.refused, self.kept)}, "
            "and gets it when the last guest of the first has gone"
        )


class Union:
    """The services of a bridge, the problems of the file's entries for them, and the contradictions.

    ``mixed`` says that at least one of the networks would have other services if it had the bridge alone.
    """

    def __init__(
        self,
        services: dict[ServiceKey, Service],
        problems: list[Problem],
        contradictions: list[Contradiction],
        *,
        mixed: bool,
        ipv6: bool = False,
    ) -> None:
        self.services = services
        self.problems = problems
        self.contradictions = contradictions
        self.mixed = mixed
        self.ipv6 = ipv6

    def applied(self, found: ServiceMap) -> ServiceMap:
        """Return the map with these services in the place of its own."""
        return found._replace(services=self.services, ipv6=self.ipv6)


def merge(
    wanted: Iterable[tuple[Network, Mapping[ServiceKey, Service]]],
) -> tuple[dict[ServiceKey, Service], list[Contradiction]]:
    """Return the union of what networks want, the first network first, and their contradictions."""
    holders: dict[ServiceKey, Network] = {}
    services: dict[ServiceKey, Service] = {}
    contradictions = []
    for network, each in wanted:
        for key, service in each.items():
            if key not in services:
                holders[key], services[key] = network, service
            elif services[key] != service:
                contradictions.append(Contradiction(holders[key], services[key], network, service))
    return services, contradictions


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

    def union(self, networks: Iterable[Network], found: ServiceMap | None = None) -> Union:
        """Return the services of a bridge with these networks, the first one first.

        ``found`` is the bridge's map. While nobody answers for a host name, its port keeps the endpoint that
        it has there, if it has it for the same network.
        """
        wanted: list[tuple[Network, Mapping[ServiceKey, Service]]] = []
        problems: dict[Problem, None] = {}
        for network in networks:
            known = held_by(self.config, network, found) if found is not None else {}
            services, said = choose(self.config, network, self._addresses, known.get)
            wanted.append((network, services))
            problems |= dict.fromkeys(said)
        services, contradictions = merge(wanted)
        mixed = any(each != services for _, each in wanted)
        return Union(services, list(problems), contradictions, mixed=mixed, ipv6=self.config.ipv6)

    def _missing(self, networks: Iterable[Network]) -> list[str]:
        names = dict.fromkeys(name for each in networks for name in host_names(self.config, each))
        return [name for name in names if name not in self._addresses]


def held_by(config: Config, network: Network, found: ServiceMap) -> Mapping[ServiceKey, Service]:
    """The services of a map that it has for this network: the first network that wants a port holds it."""
    if network not in found.networks:
        return {}
    earlier = found.networks[: found.networks.index(network)]
    taken = {
        key
        for entry in config.entries
        if any(entry.applies_to(each) for each in earlier)
        for key in entry.keys
    }
    return {key: each for key, each in found.services.items() if key not in taken}


def in_words(network: Network) -> str:
    """A network for a message, as one line of ASCII."""
    number = f"id {to_ascii(network.id)}" if network.id else ""
    if network.name:
        return f"network {network.name!a}" + (f" ({number})" if number else "")
    return f"network {number}" if number else "no network"


def _shown(service: Service, than: Service | None = None) -> str:
    """A service for a message; with its options where only these differ from another one."""
    if than is None or service.candidates != than.candidates:
        return service.leads_to
    names = [
        field
        for field, *values in zip(service._fields[2:], service[2:], than[2:], strict=True)
        if values[0] != values[1]
    ]
    options = (f"{name} {getattr(service, name)!a}" for name in names)
    return f"the same with other options ({', '.join(options)})"

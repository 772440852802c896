"""The services that a configuration file gives to a network. Pure: reads no file and resolves no name.

The fields of ``Config``, ``Entry`` and ``WatchedBridge`` declare the keys of the file (``tproxy.options``).

A fault of the whole file is a ConfigError (``file``, ``reader``). A fault of one entry is a Problem, and the
other entries apply. Both become one line of ASCII whatever the file holds, so that no value can forge a line
of the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from tproxy.addresses import SERVICE_ADDRESS, is_endpoint
from tproxy.errors import to_ascii
from tproxy.log.lazy import JSON
from tproxy.model import MOST_ENDPOINTS, TCP, Endpoint, Network, Service, ServiceKey, Settings
from tproxy.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the annotations of options, which are text at run time
    from typing import Annotated

    from tproxy.options import (
        BridgePattern,
        Choice,
        Domains,
        Entries,
        Flag,
        Hosts,
        LinkNames,
        NetworkName,
        NetworkNames,
        Number,
        Option,
        Port,
        Protocols,
        Ranges,
        Seconds,
        ServiceAddress,
        Text,
    )

# Seconds that a watched bridge stays up without guests. Longer than a guest takes to be moved or started
# anew, so that its network keeps the services meanwhile.
DEFAULT_WATCH_GRACE = 30.0

LastKnown = Callable[[ServiceKey], Service | None]


class Problem(NamedTuple):
    """Something of the file that is not used, or not as it is written. ``text`` is ASCII, in one line.

    ``origin`` is the path of another file than the one that was read; "" for that one.
    """

    line: int
    text: str
    origin: str = ""

    def at(self, path: str) -> str:
        """The line to show, which begins with file and line number, as compilers do."""
        return f"{place(self.origin or path, self.line)}: {self.text}"


_NO_OPTIONS: Mapping[str, Any] = {}


class Entry(NamedTuple):
    """One valid entry of the file. ``options`` holds what it says of the options of ``model.Service``."""

    number: int
    line: int
    service_port: Annotated[
        int,
        Option(
            Port(),
            "the port on the service address that guests connect to",
            unset="`remote_port`",
            nftables="the element's key",
        ),
    ]
    # There can be host names that do not resolve.
    remote_addr: Annotated[
        tuple[str, ...],
        Option(
            Hosts(16),
            "where the service is. All addresses of a name count: first those of IPv4, each kind in order. "
            "A UNIX socket needs `protocol: tcp`",
            required=True,
            nftables="the first IPv4 address is the element's value; see [Endpoints](contract.md#endpoints)",
        ),
    ]
    # 0: there is none, because all endpoints are UNIX sockets.
    remote_port: Annotated[
        int,
        Option(
            Port(),
            "the port of the endpoint",
            unset="required, but not for UNIX sockets alone",
            nftables="the element's value",
        ),
    ] = 0
    # Names or ids; empty means every network.
    networks: Annotated[
        frozenset[str],
        Option(
            NetworkNames(),
            "the networks that have the service",
            unset="every network",
            nftables="no: it decides which bridges have the element",
        ),
    ] = frozenset()
    # An entry with several protocols is a service for each of them.
    protocol: Annotated[
        tuple[str, ...],
        Option(
            Protocols(),
            "the protocol that guests and the endpoint speak; with a list, both reach the same port",
            nftables="a part of the element's key; see [Services that are not plain]"
            "(contract.md#services-that-are-not-plain)",
        ),
    ] = (TCP,)
    service_addr: Annotated[
        str,
        Option(
            ServiceAddress(),
            "the service address, where guests have the service, for instance where the images of clouds ask "
            "for their metadata",
            nftables="a part of the element's key, likewise",
        ),
    ] = SERVICE_ADDRESS
    options: Mapping[str, Any] = _NO_OPTIONS
    origin: str = ""  # the path of another file than the one that was read

    @property
    def keys(self) -> tuple[ServiceKey, ...]:
        """The keys of the entry's services, one for each protocol."""
        return tuple(ServiceKey(self.service_port, each, self.service_addr) for each in self.protocol)

    def applies_to(self, network: Network) -> bool:
        return not self.networks or network.is_one_of(self.networks)


class WatchedBridge(NamedTuple):
    """Bridges that the watcher brings up for their guests. ``pattern`` is a pattern as in a shell."""

    pattern: Annotated[
        str, Option(BridgePattern(), "the bridges that this entry is for", key="bridge", required=True)
    ]
    network_name: Annotated[
        str, Option(NetworkName(), "the network's name, as a hook's `--network`", key="network", unset="none")
    ] = ""
    network_id: Annotated[
        str, Option(NetworkName(), "the network's id, as a hook's `--network-id`", unset="none")
    ] = ""
    uplinks: Annotated[
        frozenset[str],
        Option(
            LinkNames(),
            "ports that lead off the host, as a hook's `--uplink`",
            unset="those that are recognised",
            nftables="elements of the set `uplinks`",
        ),
    ] = frozenset()

    @property
    def network(self) -> Network:
        return Network(self.network_name, self.network_id)


class Config(NamedTuple):
    """A configuration file that was read, and warnings about what of it is not used."""

    path: str
    # A level of ``logging``.
    log_level: Annotated[
        int,
        Option(
            Choice({"0": 40, "1": 30, "2": 20, "3": 10}, "0 ERROR, 1 WARNING, 2 INFO, 3 DEBUG"),
            "the least important lines that are logged",
            key="tproxy_debug_level",
        ),
    ] = 20
    entries: Annotated[
        tuple[Entry, ...],
        Option(Entries("tproxy"), "the services", key="tproxy", unset="no services"),
    ] = ()
    warnings: tuple[Problem, ...] = ()
    bridges: Annotated[
        tuple[WatchedBridge, ...],
        Option(
            Entries("tproxy_bridges"),
            "the bridges that the watcher brings up when a guest's port appears there",
            unset="none",
        ),
    ] = ()
    watch: Annotated[bool, Option(Flag(), "whether the daemon keeps a watcher")] = False
    # At most a day: arbitrary.
    watch_grace: Annotated[
        float, Option(Seconds(0, 86400), "how long a watched bridge stays up without guests")
    ] = DEFAULT_WATCH_GRACE
    silent: bool = False  # the file has no key "tproxy" at all: the services may be in another file
    # 0: by the number of cores. At most 64: arbitrary, far more than a hypervisor can spare cores for them.
    workers: Annotated[
        int | None,
        Option(
            Number(1, 64, words={"auto": 0}),
            "how many processes move the bytes of connections. `auto`: one for each core, at most 4",
            kept=True,
        ),
    ] = 0
    max_connections: Annotated[
        int | None,
        Option(
            Number(1, 1_000_000, words={"auto": 0}),
            "how many connections may be open on this host; more are reset. `auto`: as many as the workers "
            "have descriptors for; more wait",
            kept=True,
        ),
    ] = 0
    # As long as a host name can be, HOST_NAME_MAX.
    hypervisor_name: Annotated[
        str | None,
        Option(
            Text(64),
            "this hypervisor's name for endpoints of services with `proxy_protocol`",
            unset="the host name",
            kept=True,
        ),
    ] = ""
    log_format: Annotated[
        str,
        Option(
            Choice({"text": "text", "json": "json"}),
            "how lines of the log files are written: as text, or each as a JSON object",
        ),
    ] = "text"

    ipv6: Annotated[
        bool,
        Option(
            Flag(),
            "whether guests reach all services at `fe80::a9fe:1009` too",
            nftables="the word `ipv6` in the comment of the map `sv_<bridge>`",
        ),
    ] = False
    # Of ``config.routes.RouteEntry``, which hooks load only where there are some.
    routes: Annotated[
        tuple[Any, ...],
        Option(Entries("tproxy_routes"), "what leads from outside to guests", unset="none"),
    ] = ()
    # Of ``config.tunnels.TunnelEntry``.
    tunnels: Annotated[
        tuple[Any, ...],
        Option(
            Entries("tproxy_tunnels"),
            "at a gateway, what nodes of tunnels may offer, and to whom",
            unset="nothing",
        ),
    ] = ()
    gateway_ranges: Annotated[
        tuple[str, ...],
        Option(Ranges(), "where routes with `addr` may lead", unset="nowhere"),
    ] = ()
    gateway_domains: Annotated[
        tuple[str, ...],
        Option(
            Domains(),
            "names for which the gateway may get certificates from an issuer, with all names below them",
            unset="none",
        ),
    ] = ()

    # The fields that the file itself gives a value, entries aside.
    said: frozenset[str] = frozenset()

    @property
    def settings(self) -> Settings:
        return Settings(
            self.log_style, self.watch_file, self.workers, self.max_connections, self.hypervisor_name
        )

    @property
    def log_style(self) -> int:
        """The level and the format of the log (``log.file``)."""
        return self.log_level | JSON if self.log_format == "json" else self.log_level

    @property
    def watch_file(self) -> str:
        """The absolute path of the file if it wants the daemon to keep a watcher; otherwise empty."""
        return os.path.abspath(self.path) if self.watch else ""


class NoAddress(NamedTuple):
    """The reason why a host name gives no address now.

    ``certain`` says that a name server answered, or that the name cannot exist. Otherwise nobody answered.
    """

    reason: str
    certain: bool


def nothing_known(key: ServiceKey) -> Service | None:
    """``last_known`` of a bridge that is not up."""
    return None


def host_names(config: Config, network: Network) -> list[str]:
    """The host names that the entries for a network need looked up, each once."""
    applying = (name for each in config.entries if each.applies_to(network) for name in each.remote_addr)
    return [each for each in dict.fromkeys(applying) if not is_endpoint(each)]


def choose(
    config: Config,
    network: Network,
    addresses: Mapping[str, Sequence[str] | NoAddress],
    last_known: LastKnown = nothing_known,
) -> tuple[dict[ServiceKey, Service], list[Problem]]:
    """Return the services of a network by key, and the problems of entries that are not used.

    ``addresses`` holds the addresses, or the reason for having none, of each of ``host_names``.
    Of the entries that apply to the network and can be used, the first one of a key wins. While nobody
    answers for a host name, its services lead to the endpoints that they led to before, which ``last_known``
    tells: running guests must not lose a service because a name server is down.
    """
    services: dict[ServiceKey, Service] = {}
    winners: dict[ServiceKey, Entry] = {}
    problems: dict[Problem, None] = {}

    for entry in config.entries:
        if not entry.applies_to(network):
            continue
        for key in entry.keys:
            if (winner := winners.get(key)) is not None:
                taken = f"entry {winner.number} ({line_of(winner, entry)}) has it on this network"
                ignored = "entry ignored" if len(entry.keys) == 1 else f"ignored for {key.protocol}"
                text = f"entry {entry.number}: service_port {key.in_words}: {taken}: {ignored}"
                problems[Problem(entry.line, text, entry.origin)] = None
                continue
            found, said = _used(entry, addresses, key, last_known)
            problems |= dict.fromkeys(
                Problem(entry.line, f"entry {entry.number}: {each}", entry.origin) for each in said
            )
            if found:
                winners[key] = entry
                endpoint = Endpoint(found[0], entry.remote_port)
                services[key] = Service(key, endpoint, **entry.options).led_to(found, entry.remote_port)
    return services, [*problems]


def _used(
    entry: Entry, addresses: Mapping[str, Sequence[str] | NoAddress], key: ServiceKey, last_known: LastKnown
) -> tuple[list[str], list[str]]:
    """Return the addresses that the entry's service of this key has, and what is wrong with others."""
    found, reasons = _found(entry, addresses)
    said: list[str] = []
    unanswered = [each for each in reasons if not each.certain]
    known = last_known(key) if unanswered else None
    if known is not None and known.endpoint.port == entry.remote_port:
        # Those of the addresses as before that are of no other name are those of this one.
        before = [each.address for each in known.candidates]
        found += [each for each in before if each not in found]
        found.sort(key=lambda each: before.index(each) if each in before else len(before))
        reasons = [each for each in reasons if each.certain]
        silent = ", ".join(each.reason for each in unanswered)
        said.append(f"{silent}: {known.leads_to} as before")
    outcome = "the other addresses are used" if found else "entry skipped"
    said += [f"{each.reason}: {outcome}" for each in reasons]
    if len(found) > MOST_ENDPOINTS:
        said.append(f"remote_addr has {len(found)} addresses: the first {MOST_ENDPOINTS} are used")
    return found[:MOST_ENDPOINTS], said


def _found(
    entry: Entry, addresses: Mapping[str, Sequence[str] | NoAddress]
) -> tuple[list[str], list[NoAddress]]:
    """All addresses of an entry in order, each once, and why some of its names have none."""
    found: dict[str, None] = {}
    reasons = []
    for each in entry.remote_addr:
        known = addresses.get(each, (each,))
        if isinstance(known, NoAddress):
            reasons.append(known)
        else:
            found |= dict.fromkeys(known)
    return [*found], reasons


def line_of(other: Any, entry: Any) -> str:
    """The line of another entry, for a message about this one, which can be in another file."""
    where = "" if other.origin == entry.origin else f" of {to_ascii(other.origin) or 'the file of this host'}"
    return f"line {other.line}{where}"


def place(path: str, line: int | None = None) -> str:
    """The beginning of a message about a file: its path, and a line number where there is one."""
    return to_ascii(path) + (f":{line}" if line else "")

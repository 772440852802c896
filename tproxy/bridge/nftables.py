"""Reads and changes nftables through libnftables, without starting ``nft``.

Changes are text, because the JSON of libnftables 1.0 cannot express a map to a concatenation. That is safe,
because all text comes from ``service_map`` and ``guards``, which take checked names and encode values.
Listings are JSON. Reads raise NftError rather than return too little.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

from tproxy.bridge import comments, guard_rules, guards, service_map
from tproxy.bridge.guards import ObservedGuard
from tproxy.errors import NftError
from tproxy.kernel import netns
from tproxy.log.lazy import logger
from tproxy.model import Member, Service, ServiceKey, ServiceMap
from tproxy.names import TABLE, BridgeNames
from tproxy.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tproxy.routes import Route

log = logger(__name__)

_MAP_TYPE = "inet_service : ipv4_addr . inet_service"

# <linux/netlink.h>, <linux/netfilter/nf_tables.h>
_NETLINK_NETFILTER = 12
_GETSET, _NEWSET = 10 << 8 | 10, 10 << 8 | 9  # subsystem and message
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = 1  # NLM_F_REQUEST
_IPV4 = b"\x02\x00\x00\x00"  # struct nfgenmsg: NFPROTO_IPV4, version 0
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr; the table's name is attribute 1, the set's 2


class Unsupported(NftError):
    """The kernel does not support a family, hook or expression of the command."""


class Absent(NftError):
    """An object that the command names does not exist, or the kernel does not know an expression."""


# By the text of strerror(3), which is all that libnftables reports.
_KINDS = {"No such file or directory": Absent, "Operation not supported": Unsupported}


@cache
def _library() -> Any:
    """The library that works in the namespace in which it was used first."""
    return _open_library()


def _open_library() -> Any:
    """A library that works in the namespace of this thread, where its socket is opened. Raises NftError."""
    try:
        import nftables

        library = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise NftError(f"libnftables is not installed: {error}") from None
    library.set_json_output(True)
    library.set_handle_output(False)
    return library


class Inner:
    """The nftables of the namespace in which it is made, such as that of ``inside``."""

    def __init__(self) -> None:
        self._library = _open_library()

    def transaction(self, commands: Iterable[str]) -> None:
        """As the function ``transaction``."""
        _command("\n".join(commands), self._library)

    def table(self, family: str) -> list[dict[str, Any]]:
        """The objects of the table of our name, and the table itself; none where there is no such table."""
        try:
            return _list(f"list table {family} {TABLE}", self._library)
        except (Absent, Unsupported):  # no such table, no such family
            return []

    def rules(self, family: str, table: str, chain: str) -> list[dict[str, Any]]:
        """The rules of any program's chain, from libnftables-json(5). Raises NftError."""
        listed = _list(f"list chain {family} {table} {chain}", self._library)
        return [item["rule"] for item in listed if "rule" in item]


@contextmanager
def inside(namespace: str) -> Iterator[Inner]:
    """Run the body in a namespace, and return to the former one. Raises KernelError, NftError."""
    with netns.inside(namespace):
        yield Inner()


def transaction(commands: Iterable[str]) -> None:
    """Carry out all commands in one transaction; raise NftError, having changed nothing, if one fails."""
    text = "\n".join(commands)
    if text:
        _command(text)


def read_maps(bridges: Iterable[str] | None = None) -> list[ServiceMap]:
    """The service maps of these bridges, or all. Raises NftError when nftables cannot be read.

    A bridge without a map is left out. When all maps are read, one of another type is left out with a
    warning; when its bridge is named, it raises NftError.
    """
    if bridges is not None:
        return [each for bridge in bridges if (each := read_map(bridge)) is not None]
    listed = _table("ip")
    listed_sets = {item["set"]["name"]: item["set"] for item in listed if "set" in item}
    listed_maps = {item["map"]["name"]: item["map"] for item in listed if "map" in item}
    maps = {
        name: _parse_map(each, listed_maps, listed_sets)
        for name, each in listed_maps.items()
        if not name.startswith(service_map.TYPED_PREFIX)
    }
    sets = {name: service_map.parse_members(each) for name, each in listed_sets.items()}
    cards = {name: _parse_cards(each) for name, each in listed_sets.items() if _is_cards(name)}
    for name, each in maps.items():
        if each is None and name.startswith(service_map.MAP_PREFIX):
            _warn(f"map {name} is not of type {_MAP_TYPE}")
    return [
        each._replace(
            members=sets.get(BridgeNames(each.bridge).members),
            cards=cards.get(BridgeNames(each.bridge).cards, frozenset()),
        )
        for each in maps.values()
        if each is not None
    ]


def read_map(bridge: str) -> ServiceMap | None:
    """The bridge's service map with its members, None without one.

    Raises NftError when nftables cannot be read, and for a map or set of another type, which we cannot use.
    """
    name = BridgeNames(bridge).map
    for item in _list_or_nothing(f"list map ip {TABLE} {name}"):
        if "map" in item:
            maps, sets = _read_beside(bridge)
            parsed = _parse_map(item["map"], maps, sets)
            if parsed is None:
                raise NftError(
                    f"map {name} is not of type {_MAP_TYPE}: it belongs to another program; remove it"
                )
            cards = sets.get(BridgeNames(bridge).cards)
            found = _parse_cards(cards, known=True) if cards is not None else frozenset()
            return parsed._replace(members=_read_members(bridge), cards=found)
    return None


def _read_beside(bridge: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The maps and sets beside the bridge's map, as they are listed, by name. Most bridges have none."""
    names = BridgeNames(bridge)
    there = _there((names.options, names.cards, names.typed_map, names.typed_options, names.routes))
    found: dict[str, dict[str, Any]] = {"map": {}, "set": {}}
    for name in there:
        kind = "map" if name in (names.typed_map, names.routes) else "set"
        for item in _list_or_nothing(f"list {kind} ip {TABLE} {name}"):
            if kind in item:
                found[kind][name] = item[kind]
    return found["map"], found["set"]


def _is_cards(name: str) -> bool:
    return name.startswith(service_map.CARDS_PREFIX)


def _parse_cards(listed: dict[str, Any], *, known: bool = False) -> frozenset[tuple[str, str]]:
    """The cards in a set. Of one of another type: raise NftError if the bridge is ``known``, else warn."""
    found = service_map.parse_cards(listed)
    if found is None:
        text = f"set {listed['name']} is not of type ifname . ether_addr"
        if known:
            raise NftError(f"{text}: it belongs to another program; remove it")
        _warn(text)
        return frozenset()
    return found


def _there(names: Sequence[str]) -> list[str]:
    """Those of the maps and sets that exist; all of them if the kernel does not say.

    libnftables takes a hook a fifth of a millisecond to find out for each of them, and this takes a tenth of
    that for all.
    """
    requests = []
    for number, name in enumerate(names):
        body = _IPV4 + _attribute(1, TABLE) + _attribute(2, name)
        requests.append(_HEADER.pack(_HEADER.size + len(body), _GETSET, _REQUEST, number, 0) + body)
    found = []
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        ) as kernel:
            kernel.settimeout(1)
            kernel.send(b"".join(requests))
            for _ in names:
                _, kind, _, number, _ = _HEADER.unpack_from(kernel.recv(1 << 16))
                if kind == _NEWSET:
                    found.append(names[number])
    except OSError:
        return [*names]
    return found


def _attribute(kind: int, text: str) -> bytes:
    value = text.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _read_members(bridge: str) -> dict[str, Member] | None:
    name = BridgeNames(bridge).members
    for item in _list_or_nothing(f"list set ip {TABLE} {name}"):
        if "set" in item:
            members = service_map.parse_members(item["set"])
            if members is None:
                raise NftError(
                    f"set {name} is not of type ether_addr: it belongs to another program; remove it"
                )
            return members
    return None


def read_guards() -> dict[str, ObservedGuard]:
    """The guards of all bridges, by bridge; under "" only what all bridges share. Raises NftError."""
    return guards.parse(_table("bridge"))


def read_guard(bridge: str) -> ObservedGuard:
    """The guards of one bridge. The other bridges' chains are not listed. Raises NftError."""
    chains = (*guards.SHARED_CHAINS, BridgeNames(bridge).arp_guard)
    objects = [f"chain bridge {TABLE} {each}" for each in chains]
    objects += [f"set bridge {TABLE} {each}" for each in guards.SETS]
    listed = [item for each in objects for item in _list_or_nothing(f"list {each}")]
    found = guards.parse(listed)
    if addresses := found[""].named_addresses:
        from tproxy.bridge import address_rules

        objects = [f"chain bridge {TABLE} {each}" for each in address_rules.CHAINS]
        objects += [f"set bridge {TABLE} {guards.AT_PREFIX}{each}" for each in addresses]
        listed += [item for each in objects for item in _list_or_nothing(f"list {each}")]
        found = guards.parse(listed)
    if found[""].shared and found[""].kind is None:
        found = read_guards()  # the rules do not tell which addresses other bridges have
    return found.get(bridge) or found[""]._replace(bridge=bridge)


def table_exists(family: str) -> bool:
    """Whether our table of that family exists. Raises NftError."""
    return bool(_table(family))


def delete_empty_tables() -> None:
    """Delete those of our tables that hold nothing of any bridge. Raises NftError."""
    transaction(
        f"{verb} table {family} {TABLE}"
        for family in ("ip", "bridge")
        if (listed := _table(family)) and guards.only_shared(listed)
        for verb in ("add", "delete")  # "add" first: deleting fails if somebody has deleted it since
    )


def forward_chains() -> list[dict[str, Any]]:
    """The chains of families ip and inet at the forward hook, from libnftables-json(5). Raises NftError."""
    return [
        chain
        for family in ("ip", "inet")
        for item in _list(f"list chains {family}")
        if (chain := item.get("chain")) and chain.get("hook") == "forward"
    ]


def known_sources() -> dict[str, int]:
    """How many sources each port brought in during the last seconds (guard_rules). Raises NftError."""
    counts: dict[str, int] = {}
    for item in _list_or_nothing(f"list set bridge {TABLE} {guard_rules.KNOWN}"):
        for each in item.get("set", {}).get("elem", []):
            value = each["elem"]["val"] if "elem" in each else each
            port = value["concat"][0]
            counts[port] = counts.get(port, 0) + 1
    return counts


def bridge_chains() -> list[dict[str, Any]]:
    """All chains of family bridge, of any program, from libnftables-json(5). Raises NftError."""
    return [item["chain"] for item in _list_or_nothing("list chains bridge") if "chain" in item]


def rules(family: str, table: str, chain: str) -> list[list[dict[str, Any]]]:
    """The statements of each rule of any program's chain, from libnftables-json(5). Raises NftError."""
    listed = _list(f"list chain {family} {table} {chain}")
    return [item["rule"].get("expr", []) for item in listed if "rule" in item]


def _parse_map(
    listed: dict[str, Any], maps: Mapping[str, dict[str, Any]], sets: Mapping[str, dict[str, Any]]
) -> ServiceMap | None:
    """The service map, with what belongs to it in other ``maps`` and ``sets``, which are by name."""
    bridge = listed["name"].removeprefix(service_map.MAP_PREFIX)
    options = sets.get(service_map.OPTIONS_PREFIX + bridge)
    rest = (service_map.parse_rest(options) if options is not None else None) or {}
    parsed = service_map.parse_map(listed, rest)
    if parsed is None:
        return None
    _warn_of(listed, rest, parsed.services, service_map.OPTIONS_PREFIX + bridge)
    if routes := maps.get(BridgeNames(bridge).routes):
        parsed = parsed._replace(routes=_parse_routes(routes))
    typed = maps.get(service_map.TYPED_PREFIX + bridge)
    if typed is None:
        return parsed
    options = sets.get(service_map.TYPED_OPTIONS_PREFIX + bridge)
    rest = (service_map.parse_rest(options, plain=False) if options is not None else None) or {}
    services = service_map.parse_typed(typed, rest)
    if services is None:
        _warn(f"map {typed['name']} is not of the type that tproxy knows, and is ignored")
        return parsed
    _warn_of(typed, rest, services, service_map.TYPED_OPTIONS_PREFIX + bridge)
    return parsed._replace(services={**parsed.services, **services}, ipv6=service_map.has_ipv6(typed))


def _parse_routes(listed: dict[str, Any]) -> dict[int, Route]:
    from tproxy.bridge import route_map  # few bridges have routes

    found = route_map.parse(listed)
    if found is None:
        _warn(f"map {listed['name']} is not of the type that tproxy knows, and is ignored")
    return found or {}


def _warn_of(
    listed: dict[str, Any], rest: service_map.Rest, services: Mapping[ServiceKey, Service], options: str
) -> None:
    """Log what of a map cannot be used; ``options`` is the name of the set with the rest of its options."""
    for key, count in service_map.continued(listed).items():
        if any((key, number) not in rest for number in range(count)):
            _warn(f"map {listed['name']}: options of port {key.in_words} are missing in the set {options}")
    elements = len(listed.get("elem", []))
    if sum(map(comments.in_map, services.values())) < elements:
        for each in service_map.unusable_elements(listed):
            _warn(f"map {listed['name']}: {each} is ignored: it is not one port and its endpoint")


@cache
def _warn(line: str) -> None:
    """Log a warning once in a process. A watcher reads every two seconds while no daemon runs."""
    log.warning("%s", line)


def _list(command: str, library: Any = None) -> list[dict[str, Any]]:
    text = _command(command, library)
    try:
        listed: list[dict[str, Any]] = json.loads(text)["nftables"]
    except ValueError as error:
        raise NftError(f"nftables: the answer to {command!r} cannot be read: {error}") from None
    return listed


def _table(family: str) -> list[dict[str, Any]]:
    """The objects of our table, and the table itself; none where there is no such table."""
    # `list tables` would not be a cheaper check first: libnftables reads all tables of the host for it.
    return _list_or_nothing(f"list table {family} {TABLE}")


def _list_or_nothing(command: str) -> list[dict[str, Any]]:
    try:
        return _list(command)
    except Absent:
        return []


def _command(text: str, library: Any = None) -> str:
    status, output, error = (library or _library()).cmd(text)
    if status == 0:
        result: str = output
        return result
    # The first line is the reason. The others quote the command and mark the place.
    reason = (error.strip().splitlines() or ["unknown error"])[0].removeprefix("Error: ")
    kind = next((kind for said, kind in _KINDS.items() if said in reason), NftError)
    raise kind(f"nftables: {reason}")

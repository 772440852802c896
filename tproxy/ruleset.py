"""What we keep in nftables, as text to load and as parsed JSON. Pure: ``nft`` talks to the kernel.

The service map is the contract (SPEC section 3). Its comments carry what a service needs besides:
``key=value`` words, percent-encoded, so that a listing can always be loaded again.

The guards are two base chains for each bridge. In words, for a frame that comes in at a port of the
bridge that is not our veth: drop it when it claims to be the service (its MAC, or the service
address as an ARP or IPv4 sender); drop it when it comes from an uplink and asks for the service;
otherwise send what is addressed to the service address to our MAC, so that a guest that would use
its gateway arrives too. When forwarding: what is for the service goes to our veth and nowhere else,
and nothing of ours leaves through an uplink.

Every rule carries a comment with a checksum of its text, by which it is recognised again: nft's
listing of a rule differs between versions, the comment does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tproxy.errors import BadName
from tproxy.model import (
    DEFAULT_CONNECT_TIMEOUT,
    SERVICE_ADDRESS,
    SERVICE_MAC,
    TABLE,
    BridgeNames,
    Endpoint,
    Network,
    Service,
    ServiceMap,
)

MAP_PREFIX = "ep_"
_MAP_TYPE = "type inet_service : ipv4_addr . inet_service;"

# NFTNL_UDATA_COMMENT_MAXLEN of libnftnl is 128 with the final NUL.
MAX_COMMENT = 127

# Bridge priority "dstnat": before the forwarding decision, which our rewrite is for.
_PREROUTING = "type filter hook prerouting priority -300; policy accept;"
_FORWARD = "type filter hook forward priority filter; policy accept;"
_HOOKS = {"prerouting": ("prerouting", -300), "forward": ("forward", -200)}

NAMED = "named"  # comment of an uplink that the operator named; others were recognised

Json = dict[str, Any]


# Service maps


def storable(wanted: ServiceMap) -> ServiceMap:
    """What of a map can be kept: words that do not fit into a comment are gone.

    Only such a map can be compared with one that was read.
    """
    network = decode_words(_network_comment(wanted.network))
    services = {
        port: _service(port, each.endpoint, _service_comment(each)) for port, each in wanted.services.items()
    }
    return ServiceMap(wanted.bridge, services, Network(network.get("network", ""), network.get("id", "")))


def add_map(wanted: ServiceMap) -> list[str]:
    """Commands that make a map which is not there yet."""
    names = BridgeNames(wanted.bridge)
    comment = _quoted(_network_comment(wanted.network))
    return [
        f"add table ip {TABLE}",
        f"add map ip {TABLE} {names.map} {{ {_MAP_TYPE} {comment + ';' if comment else ''} }}",
        *_elements("add", names, wanted.services.values()),
    ]


def change_map(observed: ServiceMap, wanted: ServiceMap) -> list[str]:
    """Commands that turn the observed map into the wanted one; none when it is that already."""
    names = BridgeNames(wanted.bridge)
    if observed.network != wanted.network:
        # A map's comment cannot be changed. In one transaction nobody sees it missing.
        return [f"delete map ip {TABLE} {names.map}", *add_map(wanted)]
    gone = [each for port, each in observed.services.items() if wanted.services.get(port) != each]
    new = [each for port, each in wanted.services.items() if observed.services.get(port) != each]
    return [*_elements("delete", names, gone), *_elements("add", names, new)]


def delete_map(bridge: str) -> list[str]:
    return [f"delete map ip {TABLE} {BridgeNames(bridge).map}"]


def parse_map(listed: Json) -> ServiceMap | None:
    """A map of ``nft -j list``; None when it is not one of ours by name or type."""
    name, key, value = listed["name"], listed.get("type"), listed.get("map")
    if isinstance(value, list):  # newer versions of nft list the parts
        value = " . ".join(value)
    if not name.startswith(MAP_PREFIX) or (key, value) != ("inet_service", "ipv4_addr . inet_service"):
        return None
    bridge = name.removeprefix(MAP_PREFIX)
    try:
        BridgeNames(bridge)
    except BadName:
        return None
    words = decode_words(listed.get("comment", ""))
    services = {}
    for left, right in listed.get("elem", []):
        element = left.get("elem", left) if isinstance(left, dict) else {"val": left}
        address, port = right["concat"]
        service = _service(int(element["val"]), Endpoint(address, int(port)), element.get("comment", ""))
        services[service.port] = service
    return ServiceMap(bridge, services, Network(words.get("network", ""), words.get("id", "")))


def _service(port: int, endpoint: Endpoint, comment: str) -> Service:
    words = decode_words(comment)
    try:
        timeout = float(words.get("connect_timeout", ""))
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < float("inf"):
        timeout = DEFAULT_CONNECT_TIMEOUT
    return Service(port, endpoint, words.get("name", ""), timeout)


def _elements(verb: str, names: BridgeNames, services: Iterable[Service]) -> list[str]:
    texts = []
    for service in services:
        comment = _quoted(_service_comment(service)) if verb == "add" else ""
        endpoint = f"{service.endpoint.address} . {service.endpoint.port}"
        texts.append(f"{service.port} {comment} : {endpoint}")
    return [f"{verb} element ip {TABLE} {names.map} {{ {', '.join(texts)} }}"] if texts else []


def _network_comment(network: Network) -> str:
    # The id first: it always fits.
    return encode_words({"id": network.id, "network": network.name})


def _service_comment(service: Service) -> str:
    timeout = service.connect_timeout
    word = f"{timeout:g}" if timeout != DEFAULT_CONNECT_TIMEOUT else ""
    return encode_words({"connect_timeout": word, "name": service.name})


def _quoted(comment: str) -> str:
    return f'comment "{comment}"' if comment else ""


def encode_words(words: Mapping[str, str]) -> str:
    """A comment of these words without the empty ones.

    A word that does not fit any more is left out whole: half a name would be another name.
    """
    text = ""
    for key, value in words.items():
        # Not surrogateescape's "?": any bytes in a name come back as they were.
        word = f"{key}={quote(value.encode(errors='surrogateescape'), safe='')}" if value else ""
        if word and len(text) + len(word) + 1 <= MAX_COMMENT:
            text += (" " if text else "") + word
    return text


def decode_words(comment: str) -> dict[str, str]:
    """The words of a comment; whatever else somebody wrote there is ignored."""
    pairs = (word.partition("=") for word in comment.split())
    return {key: unquote(value, errors="surrogateescape") for key, mark, value in pairs if mark}


# Guards


class Guard(NamedTuple):
    """The guards of one bridge. ``ports`` is None where the kernel tells the bridge by itself.

    ``uplinks`` maps each uplink to whether the operator named it.
    """

    bridge: str
    ports: frozenset[str] | None
    uplinks: Mapping[str, bool]

    @property
    def rules(self) -> dict[str, list[str]]:
        """The rules of each chain, by hook, without their comments."""
        names = BridgeNames(self.bridge)
        ours, uplinks = f'"{names.veth_bridge}"', f"@{names.uplink_set}"
        if self.ports is None:
            other_bridge = elsewhere = f'meta ibrname != "{self.bridge}" return'
        else:
            other_bridge = f"iifname != @{names.port_set} return"
            # A frame is forwarded between ports of one bridge: either tells which. So what comes from
            # a port that is too new for the set is kept from the uplinks all the same.
            elsewhere = f"iifname != @{names.port_set} oifname != @{names.port_set} return"
        return {
            "prerouting": [
                other_bridge,
                f"iifname {ours} return",
                f"ether saddr {SERVICE_MAC} drop",
                f"arp saddr ip {SERVICE_ADDRESS} drop",
                f"arp saddr ether {SERVICE_MAC} drop",
                f"ip saddr {SERVICE_ADDRESS} drop",
                f"iifname {uplinks} arp daddr ip {SERVICE_ADDRESS} drop",
                f"iifname {uplinks} ip daddr {SERVICE_ADDRESS} drop",
                f"iifname {uplinks} ether daddr {SERVICE_MAC} drop",
                f"ip daddr {SERVICE_ADDRESS} ether daddr set {SERVICE_MAC}",
            ],
            "forward": [
                elsewhere,
                f"arp daddr ip {SERVICE_ADDRESS} oifname != {ours} drop",
                f"ip daddr {SERVICE_ADDRESS} oifname != {ours} drop",
                f"ether daddr {SERVICE_MAC} oifname != {ours} drop",
                f"iifname {ours} oifname {uplinks} drop",
            ],
        }

    @property
    def marks(self) -> dict[str, list[str]]:
        """The comments by which the rules are recognised."""
        return {hook: [_mark(rule) for rule in rules] for hook, rules in self.rules.items()}


class ObservedGuard(NamedTuple):
    """What is there of a bridge's guards; ``marks`` only of chains with the right hook."""

    bridge: str
    marks: Mapping[str, list[str]]
    ports: frozenset[str] | None
    uplinks: Mapping[str, bool] | None

    @property
    def anything(self) -> bool:
        return bool(self.marks) or self.ports is not None or self.uplinks is not None

    def has_rules_of(self, guard: Guard) -> bool:
        sets_there = self.uplinks is not None and (guard.ports is None or self.ports is not None)
        return sets_there and self.marks == guard.marks


def load_guard(guard: Guard) -> list[str]:
    """Commands that make the guards exactly so, whatever was there, in one transaction."""
    names = BridgeNames(guard.bridge)
    chains = {"prerouting": (names.guard_prerouting, _PREROUTING), "forward": (names.guard_forward, _FORWARD)}
    commands = delete_guard(guard.bridge)
    commands.append(f"add set bridge {TABLE} {names.uplink_set} {{ type ifname; }}")
    commands += _uplink_elements("add", names, guard.uplinks)
    if guard.ports is not None:
        commands.append(f"add set bridge {TABLE} {names.port_set} {{ type ifname; }}")
        commands += _port_elements("add", names, guard.ports)
    for hook, (chain, definition) in chains.items():
        commands.append(f"add chain bridge {TABLE} {chain} {{ {definition} }}")
        commands += [
            f'add rule bridge {TABLE} {chain} {rule} comment "{_mark(rule)}"' for rule in guard.rules[hook]
        ]
    return commands


def delete_guard(bridge: str) -> list[str]:
    """Commands after which the bridge has no guards, whether or not it had any."""
    names = BridgeNames(bridge)
    chains = [f"chain bridge {TABLE} {name}" for name in (names.guard_prerouting, names.guard_forward)]
    sets = [f"set bridge {TABLE} {name}" for name in (names.uplink_set, names.port_set)]
    # Added first, so that deleting never fails for something that is not there.
    return [
        f"add table bridge {TABLE}",
        *(f"add {chain}" for chain in chains),
        *(f"add {each} {{ type ifname; }}" for each in sets),
        *(f"flush {chain}" for chain in chains),
        *(f"delete {chain}" for chain in chains),
        *(f"delete {each}" for each in sets),
    ]


def change_sets(observed: ObservedGuard, guard: Guard) -> list[str]:
    """Commands that bring the sets of a guard up to date whose rules are right."""
    names = BridgeNames(guard.bridge)
    commands = []
    if guard.ports is not None and observed.ports is not None:
        commands += _port_elements("delete", names, observed.ports - guard.ports)
        commands += _port_elements("add", names, guard.ports - observed.ports)
    before, after = dict(observed.uplinks or {}), dict(guard.uplinks)
    commands += _uplink_elements("delete", names, dict(before.items() - after.items()))
    commands += _uplink_elements("add", names, dict(after.items() - before.items()))
    return commands


def parse_guards(listed: Iterable[Json]) -> dict[str, ObservedGuard]:
    """All guards in the objects of ``nft -j list table bridge one_tproxy``, by bridge."""
    hooks: dict[str, str] = {}  # by chain
    marks: dict[str, list[str]] = {}
    sets: dict[str, dict[str, bool]] = {}
    for item in listed:
        if chain := item.get("chain"):
            if (chain.get("hook"), chain.get("prio")) == _HOOKS.get(chain.get("hook")):
                hooks[chain["name"]] = chain["hook"]
                marks[chain["name"]] = []
        elif rule := item.get("rule"):
            if rule["chain"] in marks:
                marks[rule["chain"]].append(rule.get("comment", ""))
        elif found := item.get("set"):
            sets[found["name"]] = dict(map(_set_element, found.get("elem", [])))
    bridges = {name[3:] for name in [*hooks, *sets] if name[:3] in ("pr_", "ch_", "pt_", "up_")}
    guards = {}
    for bridge in sorted(bridges):
        try:
            names = BridgeNames(bridge)
        except BadName:
            continue
        ports = sets.get(names.port_set)
        guards[bridge] = ObservedGuard(
            bridge,
            {
                hooks[chain]: marks[chain]
                for chain in (names.guard_prerouting, names.guard_forward)
                if chain in hooks
            },
            frozenset(ports) if ports is not None else None,
            sets.get(names.uplink_set),
        )
    return guards


def _set_element(element: str | Json) -> tuple[str, bool]:
    if isinstance(element, str):
        return element, False
    return element["elem"]["val"], element["elem"].get("comment") == NAMED


def _port_elements(verb: str, names: BridgeNames, ports: Iterable[str]) -> list[str]:
    texts = ", ".join(f'"{port}"' for port in sorted(ports))
    return [f"{verb} element bridge {TABLE} {names.port_set} {{ {texts} }}"] if texts else []


def _uplink_elements(verb: str, names: BridgeNames, uplinks: Mapping[str, bool]) -> list[str]:
    texts = ", ".join(
        f'"{name}"' + (f' comment "{NAMED}"' if named and verb == "add" else "")
        for name, named in sorted(uplinks.items())
    )
    return [f"{verb} element bridge {TABLE} {names.uplink_set} {{ {texts} }}"] if texts else []


def _mark(rule: str) -> str:
    return f"tproxy {zlib.crc32(rule.encode()):08x}"

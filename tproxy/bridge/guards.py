"""The guards of the bridges, as text to load into nftables and as parsed JSON. Pure, like ``service_map``.

The rules for a frame that enters a guarded bridge at a port other than our veth:

- A frame that claims to come from the service is dropped: one with the service's MAC as its sender, or with
  the service address as ARP or IPv4 sender.
- A frame that comes from an uplink and asks for the service is dropped.
- Any other frame for the service address gets our MAC as its destination. So a guest that would send it to
  its gateway reaches the service too.

When the bridge forwards a frame for the service, it goes to our veth and to no other port. No frame from the
service leaves through an uplink.

The kernel runs every base chain for every frame on the host, whichever bridge the frame is on. So two base
chains serve all bridges, and what differs between bridges is in the elements of three sets. The comment of an
element names its bridge. This way the cost of a frame does not grow with the number of bridges. Each bridge
also has one base chain of its own, the ARP guard (docs/contract.md, Names on the host), whose only rule
gives up after one comparison when the frame is no ARP request.

Every rule has a comment with a checksum of its text, and is recognised by it: nft's listing of a rule differs
between versions, the comment does not.
"""

import socket
import zlib
from collections.abc import Iterable, Mapping
from functools import cache

from tproxy.bridge.service_map import decode_words, encode_words
from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC, TABLE, BridgeNames
from tproxy.typed import Any, NamedTuple

VETHS = "veths"  # our ports
UPLINKS = "uplinks"
GUARDED = "guarded"  # bridges; on kernels without `meta ibrname` the ports of the bridges
SETS = (VETHS, UPLINKS, GUARDED)

PREROUTING = "guard_prerouting"
FORWARD = "guard_forward"
# The two jump to these, so that a frame which does not concern the service costs only a few comparisons.
CLAIMING = "guard_claiming"
ASKING = "guard_asking"
FOR_SERVICE = "guard_for_service"
ARP_GUARD_PREFIX = "ch_"

# Priority "dstnat" of the bridge family: the MAC is rewritten before the decision where to forward.
_BASE = {PREROUTING: ("prerouting", -300), FORWARD: ("forward", -200)}
_ARP_GUARD = ("forward", -200)
SHARED_CHAINS = (CLAIMING, ASKING, FOR_SERVICE, PREROUTING, FORWARD)

Json = dict[str, Any]

# Every frame on the host is compared with these, and with the ARP guard's once for each bridge. So each
# begins with a word at a fixed place of the frame's payload, which the kernel reads without a copy
# (nft_payload_fast_eval). Only the few frames that match it are compared with the protocol and the rest.
_ADDRESS = f"0x{socket.inet_aton(SERVICE_ADDRESS).hex()}"
_MAC_START = f"0x{SERVICE_MAC.replace(':', '')[:8]}"
_FROM_MAC = f"ether saddr {SERVICE_MAC}"
_FOR_MAC = f"ether daddr {SERVICE_MAC}"
_ARP_FROM_MAC = f"@nh,64,32 {_MAC_START} arp saddr ether {SERVICE_MAC}"
_ARP_FROM_ADDRESS = (
    f"@nh,112,16 {_ADDRESS[:6]} arp saddr ip {SERVICE_ADDRESS}"  # all 32 bits are not aligned, 16 are
)
_ARP_FOR_ADDRESS = f"@nh,192,32 {_ADDRESS} arp daddr ip {SERVICE_ADDRESS}"
_IP_FROM_ADDRESS = f"@nh,96,32 {_ADDRESS} ip saddr {SERVICE_ADDRESS}"
_IP_FOR_ADDRESS = f"@nh,128,32 {_ADDRESS} ip daddr {SERVICE_ADDRESS}"


@cache
def _shared_rules(*, by_port: bool) -> dict[str, list[str]]:
    """The rules of the chains that serve all bridges."""
    if by_port:
        unguarded = elsewhere = f"iifname != @{GUARDED}"
        # A frame is forwarded between ports of one bridge, so either port tells which bridge. So frames from
        # a port that is not in the set yet are kept from the uplinks too.
        elsewhere += f" oifname != @{GUARDED}"
    else:
        unguarded = elsewhere = f"meta ibrname != @{GUARDED}"
    claims = (_FROM_MAC, _ARP_FROM_MAC, _ARP_FROM_ADDRESS, _IP_FROM_ADDRESS)
    asks = (_ARP_FOR_ADDRESS, _IP_FOR_ADDRESS, _FOR_MAC)
    return {
        CLAIMING: [f"iifname @{VETHS} accept", f"{unguarded} return", "drop"],
        ASKING: [
            f"{_FOR_MAC} iifname != @{UPLINKS} accept",  # first, because nearly all frames match
            f"{unguarded} return",
            f"iifname @{UPLINKS} drop",
            f"{_IP_FOR_ADDRESS} ether daddr set {SERVICE_MAC} accept",
        ],
        FOR_SERVICE: [f"oifname @{VETHS} accept", f"{elsewhere} return", "drop"],
        PREROUTING: [
            *(f"{claim} jump {CLAIMING}" for claim in claims),
            *(f"{ask} jump {ASKING}" for ask in asks),
        ],
        FORWARD: [
            *(f"{ask} jump {FOR_SERVICE}" for ask in asks),
            f"{_FROM_MAC} oifname @{UPLINKS} drop",
        ],
    }


class Guard(NamedTuple):
    """The guards that one bridge should have.

    ``ports`` is None when the rules match a frame's bridge (``meta ibrname``). Otherwise they match these
    ports.
    ``uplinks`` maps each uplink to whether the operator named it; the others were recognised.
    """

    bridge: str
    ports: frozenset[str] | None
    uplinks: Mapping[str, bool]

    @property
    def shared_rules(self) -> dict[str, list[str]]:
        """The rules of the shared chains, by chain."""
        return _shared_rules(by_port=self.ports is not None)

    @property
    def arp_rule(self) -> str:
        """The rule of the ARP guard: no request for the service address leaves at another port than ours."""
        if self.ports is None:
            ours = BridgeNames(self.bridge).veth_bridge
            return f'{_ARP_FOR_ADDRESS} oifname != "{ours}" meta ibrname "{self.bridge}" drop'
        return f"{_ARP_FOR_ADDRESS} oifname != @{VETHS} iifname @{GUARDED} drop"

    @property
    def elements(self) -> dict[str, dict[str, str]]:
        """The comments of this bridge's elements, by set and name."""
        guarded = {self.bridge} if self.ports is None else self.ports
        return {
            VETHS: {BridgeNames(self.bridge).veth_bridge: _element_comment(self.bridge)},
            UPLINKS: {name: _element_comment(self.bridge, named) for name, named in self.uplinks.items()},
            GUARDED: dict.fromkeys(guarded, _element_comment(self.bridge)),
        }

    def rules_are_in(self, found: "ObservedGuard") -> bool:
        """Whether the shared chains have the rules of this kind of guard: by bridge, or by port."""
        return found.shared == {chain: _marks(rules) for chain, rules in self.shared_rules.items()}


class ObservedGuard(NamedTuple):
    """The guards that a bridge has, and what all bridges share."""

    bridge: str
    shared: Mapping[str, list[str]] = {}  # comments of the rules, by chain; only chains with the right hook
    arp_guard: list[str] | None = None  # comments of its rules; None without such a chain at the right hook
    sets: Mapping[str, Mapping[str, str]] = {}  # by set: comments of the elements of all bridges, by element

    def own(self, name: str) -> dict[str, str]:
        """This bridge's elements of the set ``name``, with their comments."""
        elements = self.sets.get(name, {})
        return {key: text for key, text in elements.items() if _words(text).get("bridge") == self.bridge}

    @property
    def named_uplinks(self) -> frozenset[str]:
        """The uplinks of this bridge that the operator named."""
        own = self.own(UPLINKS)
        return frozenset(name for name, comment in own.items() if "named" in _words(comment))

    def named_uplinks_or(self, remembered: frozenset[str]) -> frozenset[str]:
        """The named uplinks; the ``remembered`` ones when somebody deleted this bridge's elements."""
        return self.named_uplinks if self.own(VETHS) else remembered

    @property
    def anything(self) -> bool:
        """Whether the bridge has any part of its guards."""
        return self.arp_guard is not None or any(map(self.own, SETS))


def load(guard: Guard, found: ObservedGuard) -> list[str]:
    """Return the commands of one transaction that turns what was ``found`` into ``guard``; none if equal."""
    commands = []
    if any(name not in found.sets for name in SETS):
        commands.append(f"add table bridge {TABLE}")
        commands += [f"add set bridge {TABLE} {name} {{ type ifname; }}" for name in SETS]
    if not guard.rules_are_in(found):
        commands += _load_chains(guard.shared_rules)
    commands += change_elements(guard, found)
    if found.arp_guard != _marks([guard.arp_rule]):
        commands += _load_chains({BridgeNames(guard.bridge).arp_guard: [guard.arp_rule]})
    return commands


def change_elements(guard: Guard, found: ObservedGuard) -> list[str]:
    """Return the part of ``load`` that depends on the bridge's ports: the elements of the sets."""
    commands = []
    for name, wanted in guard.elements.items():
        there = found.sets.get(name, {})
        changed = {key for key, comment in wanted.items() if there.get(key) != comment}
        # Adding an element again does not change its comment. One with another comment is deleted first.
        commands += _delete_elements(
            name, (changed & there.keys()) | (found.own(name).keys() - wanted.keys())
        )
        if changed:
            texts = ", ".join(f'"{key}" comment "{wanted[key]}"' for key in sorted(changed))
            commands.append(f"add element bridge {TABLE} {name} {{ {texts} }}")
    return commands


def unload(found: ObservedGuard) -> list[str]:
    """Return commands after which the bridge has no guards. What all bridges share stays."""
    commands = [each for name in SETS for each in _delete_elements(name, found.own(name))]
    if found.arp_guard is not None:
        chain = f"chain bridge {TABLE} {BridgeNames(found.bridge).arp_guard}"
        commands += [f"flush {chain}", f"delete {chain}"]
    return commands


def parse(listed: Iterable[Json]) -> dict[str, ObservedGuard]:
    """Return the guards in the objects of ``nft -j list``, by bridge; under "" what all bridges share."""
    chains: dict[str, list[str]] = {}
    sets: dict[str, dict[str, str]] = {}
    for item in listed:
        if chain := item.get("chain"):
            where = chain.get("hook"), chain.get("prio")
            # Every frame on the host passes the chain: with policy drop it would cut off all bridges.
            if where == _hook(chain["name"]) and chain.get("policy", "accept") == "accept":
                chains[chain["name"]] = []
        elif rule := item.get("rule"):
            if rule["chain"] in chains:
                chains[rule["chain"]].append(rule.get("comment", ""))
        elif (found := item.get("set")) and found["name"] in SETS:
            sets[found["name"]] = dict(map(_set_element, found.get("elem", [])))
    shared = {name: marks for name, marks in chains.items() if name in SHARED_CHAINS}
    arp_guards = {
        name.removeprefix(ARP_GUARD_PREFIX): marks
        for name, marks in chains.items()
        if name.startswith(ARP_GUARD_PREFIX)
    }
    owners = {_words(text).get("bridge", "") for elements in sets.values() for text in elements.values()}
    return {
        bridge: ObservedGuard(bridge, shared, arp_guards.get(bridge), sets)
        for bridge in sorted({"", *arp_guards, *owners})
    }


def only_shared(listed: Iterable[Json]) -> bool:
    """Whether a table, as listed, holds nothing of any bridge, and nothing that another program made."""
    for item in listed:
        ((kind, found),) = item.items()
        if kind == "table" and found.get("flags"):  # another program made it: we set no flags
            return False
        if kind in ("chain", "rule") and found.get("chain", found.get("name")) not in SHARED_CHAINS:
            return False
        if kind == "set" and (found["name"] not in SETS or found.get("elem")):
            return False
        if kind not in ("metainfo", "table", "chain", "rule", "set"):
            return False
    return True


def _hook(chain: str) -> tuple[str, int] | tuple[None, None]:
    """The hook and the priority of a base chain; None for a chain that others jump to."""
    if chain.startswith(ARP_GUARD_PREFIX):
        return _ARP_GUARD
    return _BASE.get(chain, (None, None))


def _load_chains(chains: Mapping[str, Iterable[str]]) -> list[str]:
    """Return commands that replace these chains. A chain must come before those that jump to it."""
    commands = []
    # Each is added first, because deleting a missing chain fails; one at another hook exists already. All are
    # flushed before any is deleted, because a chain cannot be deleted while a rule jumps to it.
    for verb in ("add", "flush", "delete"):
        commands += [f"{verb} chain bridge {TABLE} {name}" for name in chains]
    for name, rules in chains.items():
        hook, priority = _hook(name)
        base = f"type filter hook {hook} priority {priority}; policy accept;" if hook else ""
        commands.append(f"add chain bridge {TABLE} {name} {{ {base} }}")
        commands += [f'add rule bridge {TABLE} {name} {rule} comment "{_mark(rule)}"' for rule in rules]
    return commands


def _delete_elements(name: str, keys: Iterable[str]) -> list[str]:
    texts = ", ".join(f'"{key}"' for key in sorted(keys))
    return [f"delete element bridge {TABLE} {name} {{ {texts} }}"] if texts else []


def _set_element(element: str | Json) -> tuple[str, str]:
    if isinstance(element, str):
        return element, ""
    return element["elem"]["val"], element["elem"].get("comment", "")


def _element_comment(bridge: str, named: bool = False) -> str:
    return encode_words({"bridge": bridge, "named": "yes" if named else ""})


@cache
def _words(comment: str) -> dict[str, str]:
    return decode_words(comment)


def _marks(rules: Iterable[str]) -> list[str]:
    return list(map(_mark, rules))


@cache
def _mark(rule: str) -> str:
    return f"tproxy {zlib.crc32(rule.encode()):08x}"

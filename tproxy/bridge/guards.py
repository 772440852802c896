"""The guards at the bridges, as text to load into nftables and as parsed JSON. Pure, as ``ruleset`` is.

In words, for a frame that comes in at a port of a guarded bridge that is not our veth: drop it when
it claims to be the service (its MAC, or the service address as an ARP or IPv4 sender); drop it when
it comes from an uplink and asks for the service; otherwise send what is addressed to the service
address to our MAC, so that a guest that would use its gateway arrives too. When forwarding: what is
for the service goes to our veth and nowhere else, and nothing of ours leaves through an uplink.

Every frame on the host passes every base chain, whichever bridge it is on. So two base chains serve
all bridges, and what differs between bridges are elements of three sets, each with its bridge in the
comment: what a frame costs does not grow with the number of bridges. The one base chain that each
bridge must have (SPEC section 2) holds the ARP guard, and lets go at once of what is not ARP.

Every rule carries a comment with a checksum of its text, by which it is recognised again: nft's
listing of a rule differs between versions, the comment does not.
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
GUARDED = "guarded"  # bridges, or, where the kernel does not tell a frame's bridge, their ports
SETS = (VETHS, UPLINKS, GUARDED)

PREROUTING = "guard_prerouting"
FORWARD = "guard_forward"
# What the two jump to, so that a frame which does not concern us costs a few comparisons.
CLAIMING = "guard_claiming"
ASKING = "guard_asking"
FOR_SERVICE = "guard_for_service"
ARP_GUARD_PREFIX = "ch_"

# Bridge priority "dstnat": before the forwarding decision, which our rewrite is for.
_BASE = {PREROUTING: ("prerouting", -300), FORWARD: ("forward", -200)}
_ARP_GUARD = ("forward", -200)
SHARED_CHAINS = (CLAIMING, ASKING, FOR_SERVICE, PREROUTING, FORWARD)

Json = dict[str, Any]

# Every frame on the host is compared with these, and with the ARP guard's as often as there are
# bridges. So the first that is compared is a word at a fixed place of whatever the frame carries, which
# the kernel reads in place (nft_payload_fast_eval); the few that agree are asked for their protocol.
_ADDRESS = f"0x{socket.inet_aton(SERVICE_ADDRESS).hex()}"
_MAC_START = f"0x{SERVICE_MAC.replace(':', '')[:8]}"
_FROM_MAC = f"ether saddr {SERVICE_MAC}"
_FOR_MAC = f"ether daddr {SERVICE_MAC}"
_ARP_FROM_MAC = f"@nh,64,32 {_MAC_START} arp saddr ether {SERVICE_MAC}"
_ARP_FROM_ADDRESS = f"@nh,112,16 {_ADDRESS[:6]} arp saddr ip {SERVICE_ADDRESS}"  # unaligned, its half is not
_ARP_FOR_ADDRESS = f"@nh,192,32 {_ADDRESS} arp daddr ip {SERVICE_ADDRESS}"
_IP_FROM_ADDRESS = f"@nh,96,32 {_ADDRESS} ip saddr {SERVICE_ADDRESS}"
_IP_FOR_ADDRESS = f"@nh,128,32 {_ADDRESS} ip daddr {SERVICE_ADDRESS}"


@cache
def _shared_rules(*, by_port: bool) -> dict[str, list[str]]:
    """The rules of the chains that serve all bridges."""
    if by_port:
        unguarded = elsewhere = f"iifname != @{GUARDED}"
        # A frame is forwarded between ports of one bridge: either tells which. So what comes from
        # a port that is too new for the set is kept from the uplinks all the same.
        elsewhere += f" oifname != @{GUARDED}"
    else:
        unguarded = elsewhere = f"meta ibrname != @{GUARDED}"
    claims = (_FROM_MAC, _ARP_FROM_MAC, _ARP_FROM_ADDRESS, _IP_FROM_ADDRESS)
    asks = (_ARP_FOR_ADDRESS, _IP_FOR_ADDRESS, _FOR_MAC)
    return {
        CLAIMING: [f"iifname @{VETHS} accept", f"{unguarded} return", "drop"],
        ASKING: [
            f"{_FOR_MAC} iifname != @{UPLINKS} accept",  # nearly all
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
    """The guards of one bridge. ``ports`` is None where the kernel tells the bridge by itself.

    ``uplinks`` maps each uplink to whether the operator named it; others were recognised.
    """

    bridge: str
    ports: frozenset[str] | None
    uplinks: Mapping[str, bool]

    @property
    def shared_rules(self) -> dict[str, list[str]]:
        return _shared_rules(by_port=self.ports is not None)

    @property
    def arp_rule(self) -> str:
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
        """Whether the shared chains match frames in this guard's way."""
        return found.shared == {chain: _marks(rules) for chain, rules in self.shared_rules.items()}


class ObservedGuard(NamedTuple):
    """What is there of a bridge's guards, and of what all bridges share."""

    bridge: str
    shared: Mapping[str, list[str]] = {}  # comments of the rules, of chains with the right hook
    arp_guard: list[str] | None = None  # likewise
    sets: Mapping[str, Mapping[str, str]] = {}  # comments by name, of all bridges

    def own(self, name: str) -> dict[str, str]:
        """This bridge's elements of a set."""
        elements = self.sets.get(name, {})
        return {key: text for key, text in elements.items() if _words(text).get("bridge") == self.bridge}

    @property
    def named_uplinks(self) -> frozenset[str]:
        own = self.own(UPLINKS)
        return frozenset(name for name, comment in own.items() if "named" in _words(comment))

    def named_or(self, remembered: frozenset[str]) -> frozenset[str]:
        """The named uplinks, or those that are remembered when the elements are lost."""
        return self.named_uplinks if self.own(VETHS) else remembered

    @property
    def anything(self) -> bool:
        return self.arp_guard is not None or any(map(self.own, SETS))


def load(guard: Guard, found: ObservedGuard) -> list[str]:
    """Commands that make the guards right, in one transaction; none when they are."""
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
    """The part of ``load`` that follows the bridge's ports."""
    commands = []
    for name, wanted in guard.elements.items():
        there = found.sets.get(name, {})
        changed = {key for key, comment in wanted.items() if there.get(key) != comment}
        # An element is not changed by adding it again: one that came from another bridge has to go.
        commands += _delete_elements(
            name, (changed & there.keys()) | (found.own(name).keys() - wanted.keys())
        )
        if changed:
            texts = ", ".join(f'"{key}" comment "{wanted[key]}"' for key in sorted(changed))
            commands.append(f"add element bridge {TABLE} {name} {{ {texts} }}")
    return commands


def unload(found: ObservedGuard) -> list[str]:
    """Commands after which the bridge has no guards; what is shared stays for the others."""
    commands = [each for name in SETS for each in _delete_elements(name, found.own(name))]
    if found.arp_guard is not None:
        chain = f"chain bridge {TABLE} {BridgeNames(found.bridge).arp_guard}"
        commands += [f"flush {chain}", f"delete {chain}"]
    return commands


def parse(listed: Iterable[Json]) -> dict[str, ObservedGuard]:
    """All guards in the objects of ``nft -j list``, by bridge, and under "" what is shared alone."""
    chains: dict[str, list[str]] = {}
    sets: dict[str, dict[str, str]] = {}
    for item in listed:
        if chain := item.get("chain"):
            where = chain.get("hook"), chain.get("prio")
            # One that drops would cut off all bridges: every frame passes it.
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
    """Whether a listing of the table holds nothing but what serves all bridges, and no bridge."""
    for item in listed:
        ((kind, found),) = item.items()
        if kind == "table" and found.get("flags"):  # as somebody made it; we do not
            return False
        if kind in ("chain", "rule") and found.get("chain", found.get("name")) not in SHARED_CHAINS:
            return False
        if kind == "set" and (found["name"] not in SETS or found.get("elem")):
            return False
        if kind not in ("metainfo", "table", "chain", "rule", "set"):
            return False
    return True


def _hook(chain: str) -> tuple[str, int] | tuple[None, None]:
    """Where frames come to a chain, and its priority; not those that are jumped to."""
    if chain.startswith(ARP_GUARD_PREFIX):
        return _ARP_GUARD
    return _BASE.get(chain, (None, None))


def _load_chains(chains: Mapping[str, Iterable[str]]) -> list[str]:
    """Commands that make these chains anew; those that are jumped to come first."""
    commands = []
    # Added first, so that deleting never fails: one may be missing, or be at another hook. And all
    # emptied before any is deleted, since what is jumped to cannot be.
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

"""The guards of the bridges, as text to load into nftables and as parsed JSON. Pure, like ``service_map``.

The rules for a frame that enters a guarded bridge at a port other than our veth:

- A frame that claims to come from the service is dropped: one with the service's MAC as its sender, or with
  the service address as ARP or IPv4 sender.
- A frame that comes from an uplink and asks for the service is dropped.
- Any other frame for the service address gets our MAC as its destination. So a guest that would send it to
  its gateway reaches the service too.

When the bridge forwards a frame for the service, it goes to our veth and to no other port. No frame from the
service leaves through an uplink.

A guest port brings in a limited number of source addresses, see ``guard_rules``, where the rules are.

The kernel runs every base chain for every frame on the host, whichever bridge the frame is on. So two base
chains serve all bridges, and what differs between bridges is in the elements of three sets. The comment of an
element names its bridge. This way the cost of a frame does not grow with the number of bridges. Each bridge
also has one base chain of its own, the ARP guard (docs/contract.md, Names on the host), whose only rule
gives up after one comparison when the frame is no ARP request.

Every rule has a comment with a checksum of its text, and is recognised by it: nft's listing of a rule differs
between versions, the comment does not. The rules for further service addresses are in ``address_rules``, with
a set for each address; the comment of such a rule names the set. So a hook of a host without such addresses
loads and reads nothing more than these.
"""

import zlib
from collections.abc import Iterable, Mapping
from functools import cache

from tproxy.bridge.comments import decode_words, encode_words
from tproxy.bridge.guard_rules import (
    ASKING,
    AT_CHAIN_PREFIX,
    FORWARD,
    GUARDED,
    INPUT,
    KNOWN,
    KNOWN_IPV6,
    LIMIT_SETS,
    PREROUTING,
    arp_rule,
    shared_rules,
)
from tproxy.bridge.guard_rules import AT_PREFIX as AT_PREFIX
from tproxy.bridge.guard_rules import SETS as SETS
from tproxy.bridge.guard_rules import SHARED_CHAINS as SHARED_CHAINS
from tproxy.bridge.guard_rules import UPLINKS as UPLINKS
from tproxy.bridge.guard_rules import VETHS as VETHS
from tproxy.names import TABLE, BridgeNames
from tproxy.typed import Any, NamedTuple

ARP_GUARD_PREFIX = "ch_"

# Priority "dstnat" of the bridge family: the MAC is rewritten before the decision where to forward.
_BASE = {PREROUTING: ("prerouting", -300), FORWARD: ("forward", -200), INPUT: ("input", -200)}
_ARP_GUARD = ("forward", -200)

Json = dict[str, Any]

_AT = "at"  # the word in the comment of a rule that is for one address only
_FORGET = f"flush set bridge {TABLE} {KNOWN}"
_MARK = "tproxy "  # begins the comment of each of our rules


class Guard(NamedTuple):
    """The guards that one bridge should have.

    ``ports`` is None when the rules match a frame's bridge (``meta ibrname``). Otherwise they match these
    ports.
    ``uplinks`` maps each uplink to whether the operator named it; the others were recognised.
    ``addresses`` are the bridge's service addresses besides 169.254.16.9, ``addresses_elsewhere`` those of
    other bridges.
    """

    bridge: str
    ports: frozenset[str] | None
    uplinks: Mapping[str, bool]
    limited: bool = True  # whether the number of new sources is limited, which needs `limit` in the kernel
    addresses: frozenset[str] = frozenset()
    addresses_elsewhere: frozenset[str] = frozenset()

    @property
    def shared_rules(self) -> dict[str, list[str]]:
        """The rules of the shared chains, by chain."""
        return _rules(*self.kind, self.addresses | self.addresses_elsewhere)

    @property
    def lacks(self) -> str:
        """What a kernel lacks that needs this kind of guard, in words, and what follows; or ""."""
        lacks = ["meta ibrname: they match by port names"] if self.ports is not None else []
        lacks += [] if self.limited else ["limit of nftables: guests can fill the neighbour table"]
        return ", and no ".join(lacks)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether the rules match ports, and whether they limit."""
        return self.ports is not None, self.limited

    @property
    def arp_rules(self) -> list[str]:
        """The rules of the ARP guard: no request for a service address leaves at another port than ours."""
        ours, by_port = BridgeNames(self.bridge).veth_bridge, self.ports is not None
        others = sorted(each for each in self.addresses if ":" not in each)
        return [
            arp_rule(self.bridge, ours, by_port=by_port),
            *(
                arp_rule(self.bridge, ours, by_port=by_port, address=each, ports=AT_PREFIX + each)
                for each in others
            ),
        ]

    @property
    def elements(self) -> dict[str, dict[str, str]]:
        """The comments of this bridge's elements, by set and name."""
        guarded = {self.bridge} if self.ports is None else self.ports
        return {
            VETHS: {BridgeNames(self.bridge).veth_bridge: _element_comment(self.bridge)},
            UPLINKS: {name: _element_comment(self.bridge, named) for name, named in self.uplinks.items()},
            GUARDED: dict.fromkeys(guarded, _element_comment(self.bridge)),
            **{name: dict.fromkeys(guarded, _element_comment(self.bridge)) for name in self._sets},
        }

    @property
    def _sets(self) -> list[str]:
        """The names of the sets of this bridge's addresses."""
        if not self.addresses:
            return []
        from tproxy.bridge import address_rules

        return sorted(map(address_rules.set_name, self.addresses))

    def rules_are_in(self, found: "ObservedGuard") -> bool:
        """Whether the shared chains have the rules of this kind of guard: by bridge or port, with limits."""
        return found.shared == {chain: _marks(rules) for chain, rules in self.shared_rules.items()}


class ObservedGuard(NamedTuple):
    """The guards that a bridge has, and what all bridges share."""

    bridge: str
    shared: Mapping[str, list[str]] = {}  # comments of the rules, by chain; only chains with the right hook
    arp_guard: list[str] | None = None  # comments of its rules; None without such a chain at the right hook
    sets: Mapping[str, Mapping[str, str]] = {}  # by set: comments of the elements of all bridges, by element
    foreign: frozenset[str] = frozenset()  # chains with names of ours and rules of another program

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
    def named_addresses(self) -> frozenset[str]:
        """The addresses for which there are rules, as the comments of these name them."""
        base = (*self.shared.get(PREROUTING, ()), *self.shared.get(FORWARD, ()))
        return frozenset(name for each in base if (name := _words(each).get(_AT)))

    @property
    def addresses(self) -> frozenset[str]:
        """The service addresses that this bridge has besides 169.254.16.9."""
        return _addresses(name for name in self._address_sets if self.own(name))

    @property
    def addresses_elsewhere(self) -> frozenset[str]:
        """Those that other bridges have."""
        return _addresses(
            name for name in self._address_sets if self.sets[name].keys() - self.own(name).keys()
        )

    @property
    def _address_sets(self) -> list[str]:
        return [name for name in self.sets if name not in SETS]

    @property
    def kind(self) -> tuple[bool, bool] | None:
        """As ``Guard.kind``; None where the rules are not as they should be."""
        addresses = _addresses(f"{AT_PREFIX}{each}" for each in self.named_addresses)
        for by_port in (False, True):
            for limited in (True, False):
                rules = _rules(by_port, limited, addresses)
                if self.shared == {chain: _marks(each) for chain, each in rules.items()}:
                    return by_port, limited
        return None

    @property
    def limited(self) -> bool:
        """Whether the rules limit the number of new sources."""
        kinds = (shared_rules(by_port=by_port, limited=True)[ASKING] for by_port in (False, True))
        return any(self.shared.get(ASKING) == _marks(rules) for rules in kinds)

    @property
    def anything(self) -> bool:
        """Whether the bridge has any part of its guards."""
        return self.arp_guard is not None or any(map(self.own, self.sets))


def load(guard: Guard, found: ObservedGuard) -> list[str]:
    """Return the commands of one transaction that turns what was ``found`` into ``guard``; none if equal."""
    commands = []
    if any(name not in found.sets for name in SETS):
        commands.append(f"add table bridge {TABLE}")
        commands += [f"add set bridge {TABLE} {name} {{ type ifname; }}" for name in SETS]
    anew = not guard.rules_are_in(found)
    rules = guard.shared_rules
    if anew:
        commands += _add_sets(rules, limited=guard.limited)
    commands += change_elements(guard, found)
    if anew:
        commands += _load_shared(rules, found)
    arp_guard = BridgeNames(guard.bridge).arp_guard
    # Another program's chain is used as it is: the shared chains drop what it should drop, too.
    if found.arp_guard != _marks(guard.arp_rules) and arp_guard not in found.foreign:
        commands += _load_chains({arp_guard: guard.arp_rules})
    return commands + (_delete_sets(rules, found) if anew else [])


def change_elements(guard: Guard, found: ObservedGuard) -> list[str]:
    """Return the part of ``load`` that depends on the bridge's ports: the elements of the sets."""
    commands = []
    elements = guard.elements
    for name in dict.fromkeys((*elements, *found.sets)):
        wanted = elements.get(name, {})
        there = found.sets.get(name, {})
        changed = {key for key, comment in wanted.items() if there.get(key) != comment}
        # Adding an element again does not change its comment. One with another comment is deleted first.
        commands += _delete_elements(
            name, (changed & there.keys()) | (found.own(name).keys() - wanted.keys())
        )
        if changed:
            texts = ", ".join(f'"{key}" comment "{wanted[key]}"' for key in sorted(changed))
            commands.append(f"add element bridge {TABLE} {name} {{ {texts} }}")
    if guard.limited and any(f" {UPLINKS} " in each for each in commands):
        commands.append(_FORGET)  # frames of known sources pass without a look at the uplinks
    return commands


def unload(found: ObservedGuard) -> list[str]:
    """Return commands after which the bridge has no guards. What all bridges share stays."""
    commands = [each for name in found.sets for each in _delete_elements(name, found.own(name))]
    if commands and found.limited:
        commands.append(_FORGET)  # frames of known sources pass without a look at the guarded bridges
    if found.arp_guard is not None:
        chain = f"chain bridge {TABLE} {BridgeNames(found.bridge).arp_guard}"
        commands += [f"flush {chain}", f"delete {chain}"]
    if (found.addresses - found.addresses_elsewhere) and (kind := found.kind) is not None:
        rules = _rules(*kind, found.addresses_elsewhere)
        commands += [*_load_shared(rules, found), *_delete_sets(rules, found)]
    return commands


def parse(listed: Iterable[Json]) -> dict[str, ObservedGuard]:
    """Return the guards in the objects of ``nft -j list``, by bridge; under "" what all bridges share."""
    chains: dict[str, list[str]] = {}
    others: dict[str, bool] = {}  # whether all rules of a chain are without our comment, by chain
    sets: dict[str, dict[str, str]] = {}
    for item in listed:
        if chain := item.get("chain"):
            where = chain.get("hook"), chain.get("prio")
            # Every frame on the host passes the chain: with policy drop it would cut off all bridges.
            if where == _hook(chain["name"]) and chain.get("policy", "accept") == "accept":
                chains[chain["name"]] = []
        elif rule := item.get("rule"):
            stranger = not rule.get("comment", "").startswith(_MARK)
            others[rule["chain"]] = others.get(rule["chain"], True) and stranger
            if rule["chain"] in chains:
                chains[rule["chain"]].append(rule.get("comment", ""))
        elif (found := item.get("set")) and (found["name"] in SETS or _addresses([found["name"]])):
            sets[found["name"]] = dict(map(_set_element, found.get("elem", [])))
    foreign = frozenset(name for name, other in others.items() if other)
    chains = {name: marks for name, marks in chains.items() if name not in foreign}
    shared = {name: marks for name, marks in chains.items() if is_shared(name)}
    arp_guards = {
        name.removeprefix(ARP_GUARD_PREFIX): marks
        for name, marks in chains.items()
        if name.startswith(ARP_GUARD_PREFIX)
    }
    owners = {_words(text).get("bridge", "") for elements in sets.values() for text in elements.values()}
    return {
        bridge: ObservedGuard(bridge, shared, arp_guards.get(bridge), sets, foreign)
        for bridge in sorted({"", *arp_guards, *owners})
    }


def only_shared(listed: Iterable[Json]) -> bool:
    """Whether a table, as listed, holds nothing of any bridge, and nothing that another program made."""
    for item in listed:
        ((kind, found),) = item.items()
        if kind == "table" and found.get("flags"):  # another program made it: we set no flags
            return False
        if kind in ("chain", "rule") and not is_shared(found.get("chain", found.get("name"))):
            return False
        if kind == "rule" and not found.get("comment", "").startswith(_MARK):
            return False
        if kind == "set" and not _is_shared_set(found):
            return False
        if kind not in ("metainfo", "table", "chain", "rule", "set"):
            return False
    return True


def is_shared(chain: str) -> bool:
    """Whether a chain of this name serves all bridges."""
    return chain in SHARED_CHAINS or chain.startswith(AT_CHAIN_PREFIX)


def _is_shared_set(found: Json) -> bool:
    """Whether a set is one of ours without anything of a bridge."""
    name = found["name"]
    if name in LIMIT_SETS or name == KNOWN_IPV6:
        return True
    return not found.get("elem") and (name in SETS or bool(_addresses([name])))


@cache
def _rules(by_port: bool, limited: bool, addresses: frozenset[str]) -> dict[str, list[str]]:
    """The rules of the shared chains on a host with these service addresses besides 169.254.16.9."""
    rules = shared_rules(by_port=by_port, limited=limited)
    if not addresses:
        return rules
    from tproxy.bridge import address_rules  # few hosts have any

    return address_rules.with_addresses(rules, addresses, by_port=by_port, limited=limited)


def _addresses(sets: Iterable[str]) -> frozenset[str]:
    """The addresses to which sets of these names belong; other names are left out."""
    names = [each for each in sets if each.startswith(AT_PREFIX)]
    if not names:
        return frozenset()
    from tproxy.bridge import address_rules

    return frozenset(filter(None, map(address_rules.address_of, names)))


def _hook(chain: str) -> tuple[str, int] | tuple[None, None]:
    """The hook and the priority of a base chain; None for a chain that others jump to."""
    if chain.startswith(ARP_GUARD_PREFIX):
        return _ARP_GUARD
    return _BASE.get(chain, (None, None))


def _add_sets(rules: Mapping[str, Iterable[str]], *, limited: bool) -> list[str]:
    """Return commands that add the sets which these rules need, and which are not there in any case."""
    names = _sets_of(rules)
    commands = [f"add set bridge {TABLE} {name} {{ type ifname; }}" for name in names]
    if limited:
        commands += [f"add set bridge {TABLE} {name} {{ {what} }}" for name, what in LIMIT_SETS.items()]
    if limited and names:
        from tproxy.bridge import address_rules

        more = address_rules.LIMIT_SETS.items()
        commands += [f"add set bridge {TABLE} {name} {{ {what} }}" for name, what in more]
    return commands


def _load_shared(rules: Mapping[str, Iterable[str]], found: ObservedGuard) -> list[str]:
    """Return commands that replace the shared chains."""
    gone = [name for name in found.shared if name not in rules]
    old = [f"{verb} chain bridge {TABLE} {name}" for verb in ("flush", "delete") for name in gone]
    return [*_load_chains(rules), *old]


def _delete_sets(rules: Mapping[str, Iterable[str]], found: ObservedGuard) -> list[str]:
    """Return commands that delete the sets of addresses for which there are no rules any more."""
    kept = (*SETS, *_sets_of(rules))
    return [f"delete set bridge {TABLE} {name}" for name in found.sets if name not in kept]


def _sets_of(rules: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of the sets of addresses that rules name."""
    found = (_set_in(rule) for chain in (PREROUTING, FORWARD) for rule in rules[chain])
    return sorted({AT_PREFIX + name for name in found if name})


def _set_in(rule: str) -> str:
    """The set of an address that a rule names, without the prefix; "" if it names none."""
    return rule.partition(f"@{AT_PREFIX}")[2].partition(" ")[0]


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
    name = _set_in(rule)
    return f"{_MARK}{zlib.crc32(rule.encode()):08x}" + (f" {_AT}={name}" if name else "")

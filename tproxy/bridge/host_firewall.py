"""Finds rules of the host's own firewall that could drop what guests send to the service address.

With bridge-nf-call-iptables=1 the kernel shows bridged IPv4 packets to the forward hook of nftables (families
ip and inet) and of iptables-legacy, as packets from the bridge to the bridge. A rule that drops or rejects
counts, unless it is for other interfaces, or a rule before it accepts everything on the bridge. Other
conditions are not judged: the rule "could" drop. Rules that match by physdev, and chains to which they lead,
are meant for bridged packets, as OpenNebula's security groups are: what they drop does not count.

Only a host on which that setting is 1 needs this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from tproxy.bridge import nftables, port_state
from tproxy.errors import NftError
from tproxy.typed import Any, NamedTuple

_LEGACY_SAVE = "iptables-legacy-save"
_LEGACY_TIMEOUT = 10.0  # seconds


class Rule(NamedTuple):
    """What a rule does. ``effect`` is drop, accept, return, jump, goto, or "" when packets go on."""

    effect: str
    target: str = ""  # the chain of a jump or goto
    certain: bool = True  # every packet on the bridge meets the rule's conditions
    meant: bool = False  # it matches by physdev, so it is meant for bridged packets


class Base(NamedTuple):
    """A chain at the forward hook, in words and with its name. ``drops``: its policy is drop."""

    where: str  # its table
    name: str
    drops: bool
    rules: Callable[[str, str], list[Rule]]  # of a chain of that table, as seen from a bridge


class Firewall(NamedTuple):
    """The host's chains at the forward hook, and ``unread``: what could not be read, in words."""

    bases: tuple[Base, ...] = ()
    unread: tuple[str, ...] = ()

    def droppers(self, bridge: str) -> list[str]:
        """What could drop packets on the bridge, in words."""
        found = (_dropper(each, bridge) for each in self.bases)
        return [*filter(None, found), *self.unread]


def read() -> Firewall:
    """The firewall of this network namespace. Each chain's rules are fetched once, when they are needed."""
    bases: list[Base] = []
    unread = []
    try:
        for chain in nftables.forward_chains():
            rules = _nft_rules(chain["family"], chain["table"])
            where = f"table {chain['family']} {chain['table']}"
            bases.append(Base(where, chain["name"], chain.get("policy") == "drop", rules))
    except NftError as error:
        unread.append(f"rules that cannot be read ({error})")
    if port_state.uses_legacy_filter():
        saved = _legacy_save()
        if saved is None:
            unread.append(f"table filter of iptables-legacy, whose rules cannot be read ({_LEGACY_SAVE})")
        else:
            bases.append(legacy_base(saved))
    return Firewall(tuple(bases), tuple(unread))


def _dropper(base: Base, bridge: str) -> str:
    chain, accepted = _walk(base, base.name, bridge, {})
    if chain:
        return f"{base.where}, chain {chain}: a rule drops or rejects"
    return f"{base.where}, chain {base.name}: policy drop" if base.drops and not accepted else ""


_Known = dict[tuple[str, bool], tuple[str, bool]]


def _walk(base: Base, name: str, bridge: str, known: _Known, *, meant: bool = False) -> tuple[str, bool]:
    """The chain with the first rule that could drop, "" for none, and whether all packets are accepted."""
    if (name, meant) not in known:
        known[name, meant] = "", False  # for a loop, which the kernel does not allow
        known[name, meant] = _judge(base, name, bridge, known, meant)
    return known[name, meant]


def _judge(base: Base, name: str, bridge: str, known: _Known, meant: bool) -> tuple[str, bool]:
    for rule in base.rules(name, bridge):
        intended = meant or rule.meant
        if rule.effect == "drop" and not intended:
            return name, False
        accepted = rule.effect == "accept"
        if rule.effect in ("jump", "goto"):
            chain, accepted = _walk(base, rule.target, bridge, known, meant=intended)
            if chain:
                return chain, False
        if rule.certain and (accepted or rule.effect in ("goto", "return")):
            return "", accepted
    return "", False


def _is_for(interface: str, bridge: str, wildcard: str) -> bool:
    if interface.endswith(wildcard):
        return bridge.startswith(interface[:-1])
    return interface == bridge


# nftables


def _nft_rules(family: str, table: str) -> Callable[[str, str], list[Rule]]:
    fetched: dict[str, list[list[Any]] | None] = {}

    def rules(chain: str, bridge: str) -> list[Rule]:
        if chain not in fetched:
            try:
                fetched[chain] = nftables.rules(family, table, chain)
            except NftError:
                fetched[chain] = None
        listed = fetched[chain]
        if listed is None:
            return [Rule("drop")]  # not known, so it could
        return [rule for each in listed for rule in nft_rule(each, bridge)]

    return rules


def nft_rule(statements: Iterable[Mapping[str, Any]], bridge: str) -> list[Rule]:
    """What a rule does, from libnftables-json(5); nothing if it is for other interfaces than the bridge."""
    certain, meant = True, False
    rules: list[Rule] = []
    for statement in statements:
        for key, value in statement.items():
            match key:
                case "match":
                    fits = _nft_match(value, bridge)
                    if fits is False:
                        return rules
                    certain = certain and fits is True
                case "accept" | "return":
                    rules.append(Rule(key, certain=certain))
                case "drop" | "reject":
                    rules.append(Rule("drop", certain=certain))
                case "jump" | "goto":
                    rules.append(Rule(key, str(value.get("target", "")), certain))
                case "vmap":
                    rules += _nft_verdicts(value, bridge)
                case "xt":  # a match or target of iptables; libnftables gives its name only, or nothing
                    kind, name = (value or {}).get("type"), (value or {}).get("name")
                    if value is None or (kind == "target" and name == "REJECT"):
                        rules.append(Rule("drop", certain=certain))
                    meant = meant or (kind, name) == ("match", "physdev")
                    certain = certain and (kind, name) in (("match", "physdev"), ("match", "comment"))
                case "counter" | "log" | "comment" | "mangle" | "notrack":
                    pass
                case _:
                    certain = False
    return [each._replace(meant=meant) for each in rules]


def _nft_match(match: Mapping[str, Any], bridge: str) -> bool | None:
    """Whether packets on the bridge meet a condition; None when that is not known."""
    key = _nft_interface(match.get("left"))
    right = match.get("right")
    names = right.get("set", [right]) if isinstance(right, dict) else [right]
    if not key or not all(isinstance(each, str) and not each.startswith("@") for each in names):
        return None
    if match.get("op") not in ("==", "!=", "in"):
        return None
    return any(_is_for(str(each), bridge, "*") for each in names) == (match.get("op") != "!=")


def _nft_interface(left: Any) -> bool:
    meta = left.get("meta") if isinstance(left, dict) else None
    return isinstance(meta, dict) and meta.get("key") in ("iifname", "oifname", "iif", "oif")


def _nft_verdicts(vmap: Mapping[str, Any], bridge: str) -> Iterator[Rule]:
    """The verdicts of a verdict map, except those for other interfaces."""
    data = vmap.get("data")
    elements = data.get("set") if isinstance(data, dict) else None
    if elements is None:  # a named map, whose elements may change at any time
        yield Rule("drop", certain=False)
        return
    for key, verdict in elements:
        named = _nft_interface(vmap.get("key")) and isinstance(key, str)
        if not named or _is_for(key, bridge, "*"):
            yield from (each._replace(certain=False) for each in nft_rule([verdict], bridge))


# iptables-legacy


def _legacy_save() -> str | None:
    """The table filter in the form of iptables-save(8); None when it cannot be read."""
    import shutil
    import subprocess  # both take longer to import than the nftables part of `read`

    # A hook may be called with a PATH of an ordinary user.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which(_LEGACY_SAVE, path=path)
    if program is None:
        return None
    try:
        command = [program, "-t", "filter"]
        done = subprocess.run(command, capture_output=True, timeout=_LEGACY_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def legacy_base(saved: str) -> Base:
    """The chain FORWARD from what iptables-save printed of the table filter."""
    policies: dict[str, str] = {}
    chains: dict[str, list[list[str]]] = {}
    for line in saved.splitlines():
        words = line.split()
        if line.startswith(":"):
            policies[words[0][1:]] = words[1]
        elif words[:1] == ["-A"]:
            chains.setdefault(words[1], []).append(words[2:])

    def rules(chain: str, bridge: str) -> list[Rule]:
        found = (legacy_rule(words, bridge, policies) for words in chains.get(chain, []))
        return [each for each in found if each is not None]

    drops = policies.get("FORWARD") == "DROP"
    return Base("table filter of iptables-legacy", "FORWARD", drops, rules)


def legacy_rule(words: Iterable[str], bridge: str, chains: Iterable[str]) -> Rule | None:
    """What a rule does, from its options; None if it is for other interfaces than the bridge."""
    effects = {"DROP": "drop", "REJECT": "drop", "ACCEPT": "accept", "RETURN": "return"}
    rule = Rule("")
    certain, meant, negated = True, False, False
    rest = iter(words)
    for word in rest:
        match word:
            case "!":
                negated = True
                continue
            case "-i" | "-o":
                if _is_for(next(rest, ""), bridge, "+") == negated:
                    return None
            case "-j" | "-g":
                target = next(rest, "")
                own = "goto" if word == "-g" else "jump"
                rule = Rule(own, target) if target in chains else Rule(effects.get(target, ""))
                break  # what follows are options of the target
            case "-m":
                physdev = next(rest, "") == "physdev"
                certain, meant = certain and physdev, meant or physdev
            case "--physdev-is-bridged":
                certain = certain and not negated
            case _:
                certain = False
        negated = False
    return rule._replace(certain=certain, meant=meant)

"""Compiles a policy into what each host is to have. Pure.

Hosts with the same groups get the same, so a host's groups are compiled once. The order is zones,
certificates, routes: a name is judged by the zones, and TLS that ends at a gateway by the certificates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from tproxy.config import check, reader, values
from tproxy.config.routes import TERMINATE
from tproxy.config.services import Config, Problem
from tproxy.errors import ConfigError
from tproxy.fleet import document
from tproxy.fleet.policy import Group, Policy, is_list, origin_of

_DUMPER: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_MAP, _SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class Wanted(NamedTuple):
    """What hosts of the same groups are to have. ``text`` is the document's body behind its header."""

    text: str
    content: Any  # as that of ``document.Document``
    config: Config
    not_after: int
    networks: frozenset[str]
    groups: tuple[str, ...]


class Compiled(NamedTuple):
    """What a policy means: for each host, and each fault as a line with file, line, key and value."""

    hosts: dict[str, Wanted]
    problems: list[str]


def compile_policy(policy: Policy) -> Compiled:
    """Return what each host is to have."""
    of_host: dict[str, list[Group]] = {host: [] for host in policy.hosts}
    for group in policy.groups:
        for host in dict.fromkeys(group.hosts):
            of_host[host].append(group)
    made: dict[tuple[str, ...], Wanted] = {}
    problems: dict[str, None] = {}
    hosts = {}
    for host, groups in of_host.items():
        names = tuple(each.name for each in groups)
        if names not in made:
            made[names], found = _compiled(policy, groups, names)
            problems |= dict.fromkeys(found)
        hosts[host] = made[names]
    problems |= dict.fromkeys(_clashes(policy, hosts))
    return Compiled(hosts, [*problems])


def _compiled(policy: Policy, groups: list[Group], names: tuple[str, ...]) -> tuple[Wanted, list[str]]:
    root, problems = _together(groups)
    try:
        config = reader.judge(policy.path, root, policy.size)
    except ConfigError as error:
        return _nothing(policy, names), [*problems, str(error)]
    found = [*check.problems(config, check.all_resolve), *_beyond(policy, config)]
    problems += [each.at(policy.path) for each in found]
    text = yaml.serialize(root, Dumper=_DUMPER, width=110) if root.value else f"{document.EMPTY}: []\n"
    ends = [each.not_after for each in groups if each.not_after]
    networks = {name for each in groups for name in each.networks}
    networks |= {each.network for each in config.routes}
    networks |= {name for each in config.entries for name in each.networks}
    content = sorted((values.written(key, values.STR), document.plain(each)) for key, each in root.value)
    return Wanted(text, content, config, min(ends, default=0), frozenset(networks), names), problems


def _nothing(policy: Policy, names: tuple[str, ...]) -> Wanted:
    return Wanted("", [], Config(policy.path), 0, frozenset(), names)


def _together(groups: Iterable[Group]) -> tuple[yaml.MappingNode, list[str]]:
    """Return the keys of the groups as one mapping: lists one behind the other, other keys once."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    problems = []
    for group in groups:
        for key_node, node in group.keys:
            key = values.written(key_node, values.STR)
            if node.tag == values.NULL:
                continue
            if is_list(key):
                before = found[key][1].value if key in found else []
                style = not (before or node.value)
                joined = yaml.SequenceNode(_SEQ, [*before, *node.value], node.start_mark, flow_style=style)
                found[key] = found[key][0] if key in found else key_node, joined
            elif key in found and document.plain(found[key][1]) != document.plain(node):
                where = f"{origin_of(found[key][1])}:{values.line(found[key][1])}"
                text = f"{key} {values.shown(node)} of group {group.name} is another one in {where}"
                problems.append(Problem(values.line(node), text, origin_of(node)).at(""))
            else:
                found[key] = key_node, node
    return yaml.MappingNode(_MAP, [*found.values()], flow_style=False), problems


def _beyond(policy: Policy, config: Config) -> list[Problem]:
    """Return what is wrong with routes because of zones, certificates and limits."""
    found = []
    owners: dict[str, int] = {}
    for number, route in enumerate(config.routes, 1):
        domain = route.domain.lower()
        text = ""
        if not domain and not route.gateway_port:
            text = "it has neither domain nor gateway_port, so nobody can ask for it"
        elif domain and policy.zones and not any(_within(domain, each) for each in policy.zones):
            text = f"domain {domain} is in none of the zones {', '.join(policy.zones)}"
        elif domain and route.tls == TERMINATE and _lacks_certificate(policy, domain):
            text = f"tls: terminate, and no certificate is for {domain}"
        owners[route.owner] = owners.get(route.owner, 0) + 1
        most, most_of_owner = policy.limits.get("routes", 0), policy.limits.get("routes_per_owner", 0)
        if most and number > most:
            text = text or f"a host takes {most} routes (limits: routes)"
        if most_of_owner and route.owner and owners[route.owner] > most_of_owner:
            text = text or f"{most_of_owner} routes of {route.owner} are enough (limits: routes_per_owner)"
        if text:
            found.append(Problem(route.line, f"tproxy_routes: {route.id}: {text}", route.origin))
    return found


def _within(domain: str, zone: str) -> bool:
    zone = zone.lower().rstrip(".")
    return domain == zone or domain.endswith(f".{zone}")


def _lacks_certificate(policy: Policy, domain: str) -> bool:
    return bool(policy.certificates) and not any(_covers(each, domain) for each in policy.certificates)


def _covers(name: str, domain: str) -> bool:
    """Whether a certificate for this name is one for the domain (RFC 6125: a wildcard is one label)."""
    name = name.lower()
    if name.startswith("*."):
        return domain == name or domain.partition(".")[2] == name[2:]
    return domain == name


def _clashes(policy: Policy, hosts: dict[str, Wanted]) -> Iterable[str]:
    """Yield domains and ids that different groups of hosts give to different routes.

    A gateway that leads to all hosts could not tell them apart. Of different owners, who has proved a domain
    has it.
    """
    seen: dict[tuple[str, str, str], tuple[int, str]] = {}
    for made in {id(each): each for each in hosts.values()}.values():
        for route in made.config.routes:
            for key in (("id", route.id, ""), ("domain", route.domain.lower(), route.owner)):
                if not key[1]:
                    continue
                known = seen.setdefault(key, (route.line, route.origin))
                if known != (route.line, route.origin):
                    text = f"tproxy_routes: {key[0]} {key[1]} is that of another route in line {known[0]}"
                    yield Problem(route.line, text, route.origin).at(policy.path)

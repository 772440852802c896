"""The whole examination: which bridges, in which order, and which checks a missing cause makes useless.

The order is from cause to effect, so the first bad line names what to repair first. Nothing is changed and no
lock is taken. What it costs does not grow with the number of guests: no table of addresses, neighbours or
connections is listed.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import plan
from tproxy.bridge.guards import VETHS, ObservedGuard
from tproxy.bridge.obstacles import HostFirewall
from tproxy.config.services import Config
from tproxy.config.watching import grace, watched
from tproxy.doctor import finding as findings
from tproxy.doctor.finding import GOOD, Finding, bad, good, warning
from tproxy.doctor.judge import configuration as judge_configuration
from tproxy.doctor.judge import host as judge_host
from tproxy.doctor.judge import links as judge_links
from tproxy.doctor.judge import processes as judge_processes
from tproxy.doctor.judge import rules as judge_rules
from tproxy.doctor.judge import serving as judge_serving
from tproxy.doctor.look import configuration, endpoints, host, links, processes, rules
from tproxy.doctor.look.configuration import Configuration
from tproxy.doctor.look.endpoints import Reached
from tproxy.doctor.look.links import Links
from tproxy.doctor.look.processes import Processes
from tproxy.doctor.look.rules import Rules
from tproxy.errors import TproxyError
from tproxy.kernel import kinds
from tproxy.kernel import links as kernel_links
from tproxy.model import Service
from tproxy.names import TABLE, check_interface_name
from tproxy.operations import lost_table, removal
from tproxy.operations.gc import candidates
from tproxy.process import run_directory


class _Bridge(NamedTuple):
    """What was read of one bridge."""

    name: str
    links: Links
    rules: Rules


class _Known(NamedTuple):
    """What was read once, for all bridges."""

    ran: Processes
    file: Configuration
    reached: Reached
    host_has: bool  # the service address
    named: bool  # the operator asked for one bridge


def examine(bridge: str | None, config: str | None) -> list[Finding]:
    """Examine the host and one bridge, or all. ``config`` is a path; None takes the usual places.

    Raises BadName for a name that no bridge can have.
    """
    if bridge is not None:
        check_interface_name(bridge)
    with rules.warnings() as said:
        return _examine(bridge, config, said)


def _examine(bridge: str | None, config: str | None, said: list[str]) -> list[Finding]:
    holder = host.lock_holder()
    guards, problem = rules.guards()
    ran = processes.look()
    file = configuration.look(config, ran.watch_file)
    found = host.host(guards, problem)
    watch_file = file.read.watch_file if file.read is not None else ""
    report = judge_host.first(found) + judge_configuration.of_file(file)
    usable = not found.links and problem is None
    bridges = _look_at(bridge, guards or {}, file, said) if usable else []
    served = rules.served_bridges()
    report += _maps(served, ran) if usable else []
    report += judge_processes.first(ran, needed=bool(served), watch_file=watch_file)
    reached = endpoints.look(_services(bridges), ran.workers[0] if ran.workers else None)
    known = _Known(ran, file, reached, rules.host_has_service_address(), bridge is not None)
    for each in bridges:
        report += [line._replace(bridge=each.name) for line in _of_bridge(each, known)]
    still = host.lock_holder()
    report += judge_processes.last(ran) + judge_host.last(found, holder if holder == still else None)
    report += [_leftovers(bridges, file)] if usable and bridge is None else []
    return sorted(report, key=_place)


def _place(line: Finding) -> tuple[int, str, int]:
    """Host first, then each bridge, then what is scarce on the host; in the order of the checks."""
    part = 1 if line.bridge else 2 if line.check in findings.HOST_LAST else 0
    return part, line.bridge, findings.CHECKS.index(line.check)


def _look_at(
    only: str | None, guards: dict[str, ObservedGuard], file: Configuration, said: list[str]
) -> list[_Bridge]:
    firewall, dropping, bridges = HostFirewall(), rules.dropping_chains(), []
    for name in [only] if only is not None else sorted({*candidates(), *_waiting(file)}):
        guard = guards.get(name) or guards[""]._replace(bridge=name)
        seen = links.look(name, guard, firewall)
        observed = seen.observed
        read = rules.look(
            name,
            said,
            namespace=observed.namespace,
            uplinks=bool(observed.recognised_uplinks | (guard.named_uplinks & observed.ports)),
            crowds=only is not None,
            dropping=dropping,
        )
        seen = seen._replace(observed=seen.observed._replace(map=read.map))
        bridges.append(_Bridge(name, seen, read))
    return bridges


def _waiting(file: Configuration) -> list[str]:
    """The bridges with guests that the watcher should bring up, by the configuration file."""
    entries = file.read.bridges if file.read is not None else ()
    return [
        name
        for name in (kernel_links.bridges() if entries else ())
        if (entry := watched(name, entries)) is not None
        and plan.guests(
            name,
            plan.Observed(ports=(ports := kernel_links.ports(name)), probes=kinds.probes(ports)),
            kinds.uplinks(name, ports) | kernel_links.real_names(entry.uplinks),
        )
    ]


def _maps(served: list[str], ran: Processes) -> list[Finding]:
    try:
        lost = lost_table.bereft()
    except TproxyError:
        return []  # it was said why nftables cannot be read
    if lost:
        text = f"the nftables table ip {TABLE} is gone, but {', '.join(lost)} still served, without guards"
        return [bad("maps", text, findings.hook_up(lost[0], None, ran.network(lost[0])))]
    count = len(served)
    return [good("maps", f"{count} {'bridge has' if count == 1 else 'bridges have'} a service map")]


def _services(bridges: list[_Bridge]) -> list[Service]:
    return [each for _, _, read in bridges if read.map is not None for each in read.map.services.values()]


def _of_bridge(bridge: _Bridge, known: _Known) -> list[Finding]:
    name, seen, read = bridge
    observed, loaded = seen.observed, read.map
    lines = judge_links.exists(name, seen)
    if not seen.is_bridge or seen.unreadable:
        return lines
    hooked = run_directory.last_use(name) is not None
    ours = hooked or (observed.guard is not None and bool(observed.guard.own(VETHS)))
    named = observed.guard.named_uplinks if observed.guard is not None else frozenset()
    config = known.file.path if known.file.named else None
    repair = findings.hook_up(name, loaded, known.ran.network(name), named, config)
    lines += [judge_links.strangers(name, seen), judge_rules.of_map(name, read, repair)]
    if loaded is None:
        # Another program may have ended the service on purpose, and kept its namespace.
        return lines if ours or known.named else [each._replace(level=GOOD, repair="") for each in lines]
    lines += judge_links.chain(loaded, seen, repair, ours=ours)
    lines += judge_links.forwarding(name, seen, repair, ours=ours)
    lines += [
        judge_rules.of_uplinks(seen),
        judge_rules.of_guards(loaded, seen, repair, ours=ours),
        *judge_rules.of_sources(name, read),
        judge_rules.of_firewall(name, seen.obstacles, read.dropping),
        judge_rules.of_agents(name, known.ran.agents, read.own, host_has=known.host_has),
    ]
    if observed.namespace:
        lines.append(judge_rules.of_wall(name, read))
    lines += [
        judge_serving.of_relay(name, known.ran),
        judge_serving.of_ports(name, known.ran, loaded),
    ]
    if ours:
        lines += judge_configuration.of_bridge(known.file, loaded, read.gone)
    lines += judge_serving.of_endpoints(loaded, known.reached)
    return [*lines, judge_serving.of_limits(name, known.ran)]


def _leftovers(bridges: list[_Bridge], file: Configuration) -> Finding:
    read = file.read or Config("")
    left = []
    for name, seen, found in bridges:
        entry = watched(name, read.bridges)
        uplinks = kernel_links.real_names(entry.uplinks) if entry else frozenset()
        observed = seen.observed._replace(map=found.map)
        seconds = grace(entry, read, exists=seen.is_bridge)
        try:
            if observed.anything and removal.left_behind(name, observed, uplinks, seconds):
                left.append(name)
        except OSError:
            continue  # it changes just now
    if left:
        text = f"{', '.join(left)}: no guest uses what hooks built there"
        return warning("leftovers", text, "tproxy gc")
    return good("leftovers", "hooks left nothing behind")

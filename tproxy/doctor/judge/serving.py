"""Judges whether the services of one bridge are served: relay, ports, endpoints, limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.dial import command
from tproxy.doctor.look.endpoints import Reached
from tproxy.doctor.look.processes import Processes
from tproxy.model import UDP, ServiceKey, ServiceMap
from tproxy.names import BridgeNames

# Seconds for which a worker's last error is news. Arbitrary: older ones are in `status` and in the log.
_RECENT = 600.0
_NAMED = 3  # of many, those that a line names


def of_relay(bridge: str, found: Processes) -> Finding:
    """Whether a relay accepts the guests' connections."""
    title = BridgeNames(bridge).relay_title
    pid = found.relays.get(bridge)
    if pid is not None and pid in found.stopped:
        text = f"the relay {title}, process {pid}, is stopped by a signal or a debugger: guests wait"
        return bad("relay", text, f"kill -CONT {pid}")
    status = _status(bridge, found)
    if found.status is not None and status is None:
        return bad("relay", "the daemon does not know the bridge's map", "tproxy reload")
    if pid is None or (status is not None and status["relay"] is None):
        said = next((each["problem"] for each in (status or {}).get("services", ()) if each["problem"]), "")
        return bad("relay", f"no relay {title} runs{f': {said}' if said else ''}", "tproxy start")
    return good("relay", f"process {pid} accepts connections")


def of_ports(bridge: str, found: Processes, loaded: ServiceMap) -> Finding:
    """Whether the daemon serves the map as it is now, and all ports listen."""
    status = _status(bridge, found)
    if status is None:
        return warning(
            "listening",
            "not known without the daemon",
            f"ip netns exec {BridgeNames(bridge).namespace} ss -Hltn",
        )
    served = {_key(each): each for each in status["services"]}
    for key, each in sorted(served.items(), key=lambda item: item[0]):
        if key in loaded.services and not each["listening"]:
            look = f"ip netns exec {BridgeNames(bridge).namespace} ss -Hltnp"
            return bad("listening", f"port {key.in_words} cannot listen: {each['problem']}", look)
    changed = sorted(
        key
        for key in served.keys() | loaded.services.keys()
        if _endpoint(served.get(key)) != _loaded(loaded, key)
    )
    if changed:
        ports = ", ".join(key.in_words for key in changed[:_NAMED])
        text = f"the map was changed, and the daemon was not told: port {ports}"
        return bad("listening", text, "tproxy reload")
    return good("listening", f"{len(served)} of {len(served)} ports")


def of_endpoints(loaded: ServiceMap, reached: Reached) -> list[Finding]:
    """Each endpoint, in the order of the ports."""
    findings = []
    for key, service in sorted(loaded.services.items()):
        for endpoint in service.candidates:
            found = reached.get((key.protocol, endpoint))
            name = f" ({service.name})" if service.name else ""
            where = f"port {key.in_words}{name}: endpoint {endpoint}"
            if found is None:
                text = f"{where} was not dialled: too many others do not answer"
                findings.append(warning("endpoint", text))
            elif found.problem:
                repair = command(endpoint, udp=key.protocol == UDP)
                findings.append(bad("endpoint", f"{where} {found.problem}", repair))
            elif key.protocol == UDP:
                findings.append(good("endpoint", f"{where} does not refuse datagrams"))
            else:
                findings.append(good("endpoint", f"{where} accepts after {found.seconds * 1000:.1f} ms"))
    return findings


def of_limits(bridge: str, found: Processes) -> Finding:
    """What connections ran into, by the counters of the workers."""
    status = _status(bridge, found)
    services = status["services"] if status is not None else []
    for each in services:
        counts = {name: count for name, count in each.get("limited", {}).items() if count}
        if counts:
            name, count = max(counts.items(), key=lambda item: item[1])
            most = each["options"].get(name)
            text = (
                f"port {_key(each).in_words}: {name}{f' ({most})' if most else ''} ended {count} connections"
            )
            return warning("limits", text, "tproxy status --verbose")
    for each in services:
        at = each.get("last_error_at")
        if at and time.time() - at < _RECENT:
            text = f"port {_key(each).in_words}: {each['last_error']}, {time.time() - at:.0f} s ago"
            return warning("limits", text, "tproxy status --verbose")
    return good("limits", "no connection ran into a limit or an error lately")


def _status(bridge: str, found: Processes) -> dict[str, Any] | None:
    bridges: dict[str, dict[str, Any]] = (found.status or {}).get("bridges", {})
    return bridges.get(bridge)


def _endpoint(served: Mapping[str, Any] | None) -> str:
    if served is None:
        return ""
    return ", ".join(each["endpoint"] for each in served.get("endpoints", ())) or str(served["endpoint"])


def _key(served: Mapping[str, Any]) -> ServiceKey:
    # A daemon of an older version tells less.
    known = (served[each] for each in ("protocol", "address", "order") if each in served)
    return ServiceKey(served["port"], *known)


def _loaded(loaded: ServiceMap, key: ServiceKey) -> str:
    service = loaded.services.get(key)
    return service.leads_to if service is not None else ""

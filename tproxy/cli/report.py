"""Makes the richer views of status, without I/O: processes and services go in, JSON or tables come out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from tproxy.cli.tables import Table, in_bytes, printable
from tproxy.model import ServiceKey

# Of the JSON document (docs/contract.md, Output of `status`), as in ``connections``.
VERSION = 1

Lines = Sequence[tuple[str, int]]

_WORKER_COLUMNS = ("worker", "state", "open", "processor time", "bridges")

# Limits of which 0 means that they follow from something else.
_AUTOMATIC = ("max_connections", "max_connections_per_bridge", "max_connections_to_endpoint")

_ENDPOINT_COLUMNS = ("bridge", "port", "endpoint", "state", "since", "why")

_COLUMNS = (
    "bridge",
    "network",
    "port",
    "name",
    "endpoint",
    "state",
    "open",
    "total",
    "to endpoint",
    "to guest",
    "last error",
)
_GROUPS = ("bridge", "network"), ("port", "name"), ("open", "total"), ("to endpoint", "to guest")
_NUMBERS = frozenset({"open", "total", "to endpoint", "to guest"})


def as_json(processes: Lines, daemon: dict[str, Any] | None) -> str:
    """Return processes and the daemon's status as JSON; ``daemon`` is null when the daemon does not run."""
    listed = [{"title": title, "pid": pid} for title, pid in processes]
    return json.dumps({"version": VERSION, "processes": listed, "daemon": daemon}, indent=2)


def as_tables(processes: Lines, daemon: dict[str, Any] | None) -> list[str | Table]:
    """Return a line for each process, then tables of services, endpoints and workers, and what is amiss."""
    text = "\n".join(f"{title}: {pid}" for title, pid in processes)
    if daemon is None:
        return [text or "nothing is running"]
    shown: list[str | Table] = [text]
    rows = [
        _row(bridge, details, service)
        for bridge, details in daemon["bridges"].items()
        for service in details["services"]
    ]
    shown.append(Table("services", _COLUMNS, rows, _NUMBERS, _GROUPS))
    notes = [
        f"{bridge}: {printable(each['text'])}"
        for bridge, details in daemon["bridges"].items()
        for each in details["obstacles"]
    ]
    notes += [
        f"{bridge}, port {_port(service)}: {name}{_limit(name, daemon, service)}: {count}"
        for bridge, details in daemon["bridges"].items()
        for service in details["services"]
        for name, count in service.get("limited", {}).items()  # a daemon of an older version has none
        if count
    ]
    if notes:
        shown.append("\n".join(notes))
    endpoints = [
        _endpoint_row(bridge, service, each)
        for bridge, details in daemon["bridges"].items()
        for service in details["services"]
        for each in service.get("endpoints", ())  # a daemon of an older version has none
    ]
    if endpoints:
        shown.append(Table("endpoints", _ENDPOINT_COLUMNS, endpoints))
    routes = [
        _route_row(bridge, each)
        for bridge, details in daemon["bridges"].items()
        for each in details.get("routes", ())  # a daemon of an older version has none
    ]
    if routes:
        shown.append(Table("routes", _ROUTE_COLUMNS, routes, frozenset({"open", "total"})))
    workers = [_worker_row(each) for each in daemon["workers"]]
    shown.append(Table("workers", _WORKER_COLUMNS, workers, frozenset({"open", "processor time"})))
    return [*shown, f"{daemon['connections']} open connections"]


def _limit(name: str, daemon: dict[str, Any], service: dict[str, Any]) -> str:
    """The value of a limit or time-out, as the configuration file has it, in parentheses."""
    if name == "network":  # no limit: the caller's network has no such service, or is not known
        return ""
    value = service["options"].get(name, daemon.get("max_connections"))
    return f" ({'auto' if not value and name in _AUTOMATIC else value})"


def _row(bridge: str, details: dict[str, Any], service: dict[str, Any]) -> list[str]:
    networks = (
        f"{each['name']} ({each['id']})".strip() if each["id"] else each["name"]
        for each in service.get("networks", details["networks"])  # of older versions none
    )
    error = printable(service["last_error"])
    if error:
        error += time.strftime(" (%Y-%m-%d %H:%M:%S)", time.localtime(service["last_error_at"]))
    return [
        bridge,
        printable(", ".join(networks)),
        _port(service),
        printable(service["name"]),
        ", ".join(each["endpoint"] for each in service.get("endpoints", ())) or service["endpoint"],
        _state(service, details["obstacles"]),
        str(service["open"]),
        str(service["total"]),
        in_bytes(service["bytes_to_endpoint"]),
        in_bytes(service["bytes_to_guest"]),
        error,
    ]


def _port(service: dict[str, Any]) -> str:
    """The service port, with protocol and service address where they are not the usual ones."""
    # A daemon of an older version tells less.
    known = (service[each] for each in ("protocol", "address", "order") if each in service)
    return ServiceKey(service["port"], *known).in_words


def _endpoint_row(bridge: str, service: dict[str, Any], endpoint: dict[str, Any]) -> list[str]:
    since = endpoint["since"]
    return [
        bridge,
        _port(service),
        endpoint["endpoint"],
        endpoint["state"],
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if since else "",
        printable(endpoint["why"]),
    ]


_ROUTE_COLUMNS = ("route", "bridge", "guest", "open", "total", "last error")


def _route_row(bridge: str, route: dict[str, Any]) -> list[str]:
    guest = route["guest"] or route["mac"] or route["bridge_port"]
    said = printable(route["last_error"])
    return [route["id"], bridge, guest, str(route["open"]), str(route["total"]), said]


def _worker_row(worker: dict[str, Any]) -> list[str]:
    busy = ", ".join(f"{each['bridge']} ({each['open']})" for each in worker["bridges"] if each["open"])
    return [
        str(worker["pid"]),
        "finishing" if worker["draining"] else "serving",
        str(worker["open"]),
        f"{worker['cpu_seconds']:.2f} s",
        busy or "none has connections",
    ]


def _state(service: dict[str, Any], obstacles: list[dict[str, str]]) -> str:
    """What the port does. Below the table is a line for each obstacle, which says what to do."""
    if not service["listening"]:
        return str(service["problem"])
    kinds = dict.fromkeys(each["kind"] for each in obstacles)
    return f"listening, but: {', '.join(kinds)}" if kinds else "listening"

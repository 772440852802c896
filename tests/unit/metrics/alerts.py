"""For each alert rule: series that fire it, and series beside that do not. promtool evaluates them."""

from __future__ import annotations

from typing import NamedTuple

HOST = 'job="tproxy", instance="h1"'
BRIDGE = f'{HOST}, bridge="br0", network="vnet1"'
SERVICE = f'{BRIDGE}, service="web:80"'


class Case(NamedTuple):
    """``series`` in promtool's notation, a value each minute; ``at`` in minutes. Fires with ``labels``."""

    alert: str
    series: dict[str, str]
    at: int
    labels: dict[str, str] | None


_OF_HOST = {"job": "tproxy", "instance": "h1"}
_OF_BRIDGE = {**_OF_HOST, "bridge": "br0", "network": "vnet1"}
_OF_SERVICE = {**_OF_BRIDGE, "service": "web:80"}


def _endpoint(address: str) -> str:
    return f'tproxy_endpoint_up{{{SERVICE}, endpoint="{address}"}}'


_ACCEPTED = f"tproxy_connections_accepted_total{{{SERVICE}}}"
_FAILED = f'tproxy_connections_ended_total{{{SERVICE}, outcome="dial_failed"}}'
_SESSIONS = f"tproxy_udp_sessions_total{{{SERVICE}}}"
_SESSIONS_FAILED = f'tproxy_udp_sessions_ended_total{{{SERVICE}, outcome="dial_failed"}}'
_LIMITED = f'tproxy_connections_limited_total{{{SERVICE}, limit="max_connections_per_guest"}}'
_IDLE = f'tproxy_connections_limited_total{{{SERVICE}, limit="idle_timeout"}}'
_WORKERS = f"tproxy_worker_restarts_total{{{HOST}}}"
_RELAYS = f"tproxy_relay_restarts_total{{{BRIDGE}}}"
_FDS = f'{HOST}, process="worker", bridge="", worker="0"'
_LAG = "tproxy_event_loop_lag_seconds"


def _connects(fast: str, slow: str) -> dict[str, str]:
    name = "tproxy_connect_duration_seconds_bucket"
    return {
        f'{name}{{{SERVICE}, le="0.001"}}': fast,
        f'{name}{{{SERVICE}, le="2.5"}}': slow,
        f'{name}{{{SERVICE}, le="+Inf"}}': slow,
    }


def _repairs(result: str) -> str:
    return f'tproxy_repairs_total{{{BRIDGE}, result="{result}"}}'


CASES = (
    Case("TproxyDown", {f"tproxy_up{{{HOST}}}": "0x5"}, 3, {**_OF_HOST, "severity": "critical"}),
    Case("TproxyDown", {f"tproxy_up{{{HOST}}}": "1x5"}, 3, None),
    Case("TproxyDown", {f"tproxy_up{{{HOST}}}": "1 0 0 1 0 0"}, 5, None),
    Case(
        "TproxyRelayMissing",
        {f"tproxy_relay_up{{{BRIDGE}}}": "0x5"},
        3,
        {**_OF_BRIDGE, "severity": "critical"},
    ),
    Case(
        "TproxyServiceNotListening",
        {f"tproxy_service_listening{{{SERVICE}}}": "0x5", f"tproxy_relay_up{{{BRIDGE}}}": "1x5"},
        4,
        {**_OF_SERVICE, "severity": "critical"},
    ),
    Case(  # that its relay is missing is an alert of its own
        "TproxyServiceNotListening",
        {f"tproxy_service_listening{{{SERVICE}}}": "0x5", f"tproxy_relay_up{{{BRIDGE}}}": "0x5"},
        4,
        None,
    ),
    Case(
        "TproxyServiceWithoutEndpoint",
        {_endpoint("10.0.0.1:80"): "0x5", _endpoint("10.0.0.2:80"): "0x5"},
        4,
        {**_OF_SERVICE, "severity": "critical"},
    ),
    Case(
        "TproxyServiceWithoutEndpoint",
        {_endpoint("10.0.0.1:80"): "0x5", _endpoint("10.0.0.2:80"): "1x5"},
        4,
        None,
    ),
    Case(
        "TproxyEndpointDown",
        {_endpoint("10.0.0.1:80"): "0x9", _endpoint("10.0.0.2:80"): "1x9"},
        7,
        {**_OF_SERVICE, "endpoint": "10.0.0.1:80", "severity": "warning"},
    ),
    Case("TproxyEndpointDown", {_endpoint("10.0.0.1:80"): "0x9", _endpoint("10.0.0.2:80"): "0x9"}, 7, None),
    Case(
        "TproxyDialsFail",
        {_ACCEPTED: "0+60x15", _FAILED: "0+6x15"},
        12,
        {**_OF_SERVICE, "severity": "warning"},
    ),
    Case("TproxyDialsFail", {_ACCEPTED: "0+60x15", _FAILED: "0+1x15"}, 12, None),
    Case("TproxyDialsFail", {_ACCEPTED: "7x15", _FAILED: "7x15"}, 12, None),
    Case(
        "TproxySessionsFail",
        {_SESSIONS: "0+60x15", _SESSIONS_FAILED: "0+6x15"},
        12,
        {**_OF_SERVICE, "severity": "warning"},
    ),
    Case("TproxySessionsFail", {_SESSIONS: "0+60x15", _SESSIONS_FAILED: "0+1x15"}, 12, None),
    Case("TproxyConnectSlow", _connects("0+9x30", "0+10x30"), 25, {**_OF_SERVICE, "severity": "warning"}),
    Case("TproxyConnectSlow", _connects("0+10x30", "0+10x30"), 25, None),
    Case(
        "TproxyConnectionsLimited",
        {_LIMITED: "0 0 1 1 1 1"},
        4,
        {**_OF_SERVICE, "limit": "max_connections_per_guest", "severity": "warning"},
    ),
    Case("TproxyConnectionsLimited", {_IDLE: "0 0 1 1 1 1"}, 4, None),
    Case("TproxyWorkerRestarts", {_WORKERS: "0 1 2 3 3 3"}, 5, {**_OF_HOST, "severity": "warning"}),
    Case("TproxyWorkerRestarts", {_WORKERS: "3x5"}, 5, None),
    Case("TproxyRelayRestarts", {_RELAYS: "0 2 4 6 6 6"}, 5, {**_OF_BRIDGE, "severity": "warning"}),
    Case(
        "TproxyRepairsFail",
        {_repairs("failed"): "0 1 2 3 3 3"},
        4,
        {**_OF_BRIDGE, "result": "failed", "severity": "critical"},
    ),
    Case("TproxyRepairsFail", {_repairs("done"): "0 1 2 3 3 3"}, 4, None),
    Case(
        "TproxyRepairsRepeated",
        {_repairs("done"): "0+1x30"},
        30,
        {**_OF_BRIDGE, "result": "done", "severity": "warning"},
    ),
    Case("TproxyRepairsRepeated", {_repairs("done"): "0 1 1x30"}, 30, None),
    Case(
        "TproxyDescriptorsShort",
        {f"tproxy_process_open_fds{{{_FDS}}}": "90x9", f"tproxy_process_max_fds{{{_FDS}}}": "100x9"},
        7,
        {**_OF_HOST, "process": "worker", "worker": "0", "severity": "warning"},
    ),
    Case(
        "TproxyEventLoopSlow",
        {
            f'{_LAG}_count{{{HOST}, process="worker"}}': "0+600x30",
            f'{_LAG}_bucket{{{HOST}, process="worker", le="0.1"}}': "0+580x30",
        },
        25,
        {**_OF_HOST, "process": "worker", "severity": "warning"},
    ),
    Case(
        "TproxyEventLoopSlow",
        {
            f'{_LAG}_count{{{HOST}, process="worker"}}': "0+600x30",
            f'{_LAG}_bucket{{{HOST}, process="worker", le="0.1"}}': "0+600x30",
        },
        25,
        None,
    ),
)

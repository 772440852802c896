"""The declarations of all metrics: name, kind, labels, and what they mean. docs/metrics.md is made of them.

Names follow Prometheus' conventions: base units, ``_total`` for counters. Every label is bounded: a guest can
make no series. UDP has no connections: what concerns its sessions has names of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.datapath.counts import CAUSES, CONNECT_BOUNDS, DURATION_BOUNDS, OUTCOMES, REASONS
from tproxy.kernel.loop import LAGS
from tproxy.model import TCP, UDP


class Metric(NamedTuple):
    """``kind`` is that of Prometheus. A counter's name is without ``_total``, as prometheus-client wants it.

    ``values`` are those of the last label, where these are words of ours, and ``bounds`` those of the buckets
    of a histogram. ``protocol``: only services with this one have the metric.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    protocol: str = ""

    @property
    def full_name(self) -> str:
        """The name as Prometheus knows it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


# What each label can be, and what bounds the number of its values.
LABELS = {
    "bridge": ("the bridge", "the bridges of this host that have a service map"),
    "network": (
        "the name of the network, or its id where it has no name; nothing for what several networks of a "
        "bridge have in common; with `@1` and the like where two have one name",
        "the networks of the bridges",
    ),
    "service": (
        "the service's name and port, such as `packages:5030`; without a name, the port",
        "the services in the maps; of one worker's counters 65,536",
    ),
    "endpoint": ("address and port, or `unix:/path`", "16 for each service"),
    "direction": ("`to_endpoint` or `to_guest`", "two"),
    "outcome": ("how a connection ended, see below", "the words below"),
    "reason": ("why a dial failed, see below", "the words below"),
    "limit": ("a key of [limits.md](limits.md)", "the limits and time-outs"),
    "result": ("`done` or `failed`", "two"),
    "process": (
        "`daemon`, `worker`, `relay`; `draining`: all old workers that finish their connections",
        "four",
    ),
    "worker": ("the worker's place, from 0; otherwise nothing", "`tproxy_workers`, at most 64"),
    "version": ("the version of tproxy that the daemon runs", "one"),
}

# What the words of a label mean.
MEANINGS = {
    "finished": "both sides ended",
    "reset_by_guest": "the guest reset it",
    "reset_by_endpoint": "the endpoint reset it",
    "lost": "an error of one of the two sockets",
    "dial_failed": "no endpoint could be reached",
    "limited": "a limit refused it",
    "timed_out": "`idle_timeout`, `half_closed_timeout`, `user_timeout` or `drain_timeout` ended it",
    "stopped": "tproxy was stopped, or the bridge taken down",
    "worker_lost": "its worker ended",
    "evicted": "it ended to make room for another one, since a limit was reached",
    "killed": "an operator ended it (`tproxy kill`)",
    "refused": "the endpoint refused",
    "silent": "the endpoint was silent for 250 ms, and another one answered",
    "unreachable": "there is no way to the endpoint, or no such UNIX socket",
    "forbidden": "a rule of this host's firewall rejects it",
    "local": "this host has no free port, descriptor or address for it",
}
# The same word of another label.
MEANINGS_OF_REASONS = {"timed_out": "the endpoint did not answer within `connect_timeout`"}
# The same word, of a session.
MEANINGS_OF_SESSIONS = {
    "finished": "it was silent for `udp_idle_timeout`",
    "dial_failed": "all endpoints refused it, or could not be reached",
    "limited": "the guest's network has no such service, or is not known",
}

BRIDGE = ("bridge", "network")
SERVICE = ("bridge", "network", "service")
DIRECTIONS = ("to_endpoint", "to_guest")

UP = Metric("tproxy_up", "gauge", "Whether the daemon answers.")
BUILD = Metric("tproxy_build_info", "gauge", "Always 1.", ("version",))
STARTED = Metric("tproxy_start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.")
RELAY_UP = Metric("tproxy_relay_up", "gauge", "Whether the bridge has a relay.", BRIDGE)
LISTENING = Metric("tproxy_service_listening", "gauge", "Whether the service port listens.", SERVICE)
OPEN = Metric("tproxy_connections_open", "gauge", "Open connections.", SERVICE, protocol=TCP)
ACCEPTED = Metric(
    "tproxy_connections_accepted",
    "counter",
    "Connections of guests: those that are open, and those that have ended.",
    SERVICE,
    protocol=TCP,
)
ENDED = Metric(
    "tproxy_connections_ended",
    "counter",
    "Connections that have ended.",
    (*SERVICE, "outcome"),
    tuple(each for each in OUTCOMES if each != "evicted"),
    protocol=TCP,
)
BYTES = Metric(
    "tproxy_transferred_bytes",
    "counter",
    "Bytes of connections; of open ones as of this scrape or the one before.",
    (*SERVICE, "direction"),
    DIRECTIONS,
    protocol=TCP,
)
CONNECT = Metric(
    "tproxy_connect_duration_seconds",
    "histogram",
    "Time from a guest's connection to the endpoint's answer, with all endpoints that were tried before.",
    SERVICE,
    bounds=CONNECT_BOUNDS,
    protocol=TCP,
)
DURATION = Metric(
    "tproxy_connection_duration_seconds",
    "histogram",
    "Duration of connections that have ended, but for those that a limit refused.",
    SERVICE,
    bounds=DURATION_BOUNDS,
    protocol=TCP,
)
SESSIONS_OPEN = Metric("tproxy_udp_sessions_open", "gauge", "Open UDP sessions.", SERVICE, protocol=UDP)
SESSIONS = Metric(
    "tproxy_udp_sessions",
    "counter",
    "UDP sessions of guests: those that are open, and those that have ended or could not begin.",
    SERVICE,
    protocol=UDP,
)
SESSIONS_ENDED = Metric(
    "tproxy_udp_sessions_ended",
    "counter",
    "UDP sessions that have ended, or could not begin.",
    (*SERVICE, "outcome"),
    ("finished", "dial_failed", "limited", "evicted", "stopped", "worker_lost", "killed"),
    protocol=UDP,
)
DATAGRAMS = Metric(
    "tproxy_udp_datagrams",
    "counter",
    "Datagrams of UDP sessions; of open ones as of this scrape or the one before.",
    (*SERVICE, "direction"),
    DIRECTIONS,
    protocol=UDP,
)
DATAGRAM_BYTES = Metric(
    "tproxy_udp_transferred_bytes",
    "counter",
    "Bytes in datagrams of UDP sessions, without headers; of open ones likewise.",
    (*SERVICE, "direction"),
    DIRECTIONS,
    protocol=UDP,
)
DIAL_FAILURES = Metric(
    "tproxy_dial_failures",
    "counter",
    "Dials of an endpoint that failed, or datagrams that it refused; another endpoint may have answered.",
    (*SERVICE, "reason"),
    REASONS,
)
LIMITED = Metric(
    "tproxy_connections_limited",
    "counter",
    "Connections that a limit refused, or a time-out ended; UDP sessions that a limit refused or ended.",
    (*SERVICE, "limit"),
    CAUSES,
)
ENDPOINT_UP = Metric(
    "tproxy_endpoint_up",
    "gauge",
    "Whether the endpoint answered when it was dialled last; missing where it was not dialled yet. Of UDP, "
    "whether it refused no datagram.",
    (*SERVICE, "endpoint"),
)
RELAY_RESTARTS = Metric(
    "tproxy_relay_restarts",
    "counter",
    "How often a relay has ended by itself, and another one was started or tried.",
    BRIDGE,
)
WORKER_RESTARTS = Metric(
    "tproxy_worker_restarts",
    "counter",
    "How often a worker has ended by itself, and another one was started.",
)
REPAIRS = Metric(
    "tproxy_repairs",
    "counter",
    "Repairs by the watcher of a bridge that another program broke.",
    (*BRIDGE, "result"),
    ("done", "failed"),
)
LAG = Metric(
    "tproxy_event_loop_lag_seconds",
    "histogram",
    "Time of one turn of an event loop, which is how long an event may have waited; its sum is the time in "
    "which the loops were busy.",
    ("process",),
    ("daemon", "worker"),
    LAGS,
)
MEMORY = Metric(
    "tproxy_process_resident_memory_bytes",
    "gauge",
    "Resident memory; processes share a part of it.",
    ("process", "bridge", "worker"),
)
FDS = Metric("tproxy_process_open_fds", "gauge", "Open descriptors.", ("process", "bridge", "worker"))
MOST_FDS = Metric(
    "tproxy_process_max_fds", "gauge", "How many descriptors may be open.", ("process", "bridge", "worker")
)
CPU = Metric("tproxy_process_cpu_seconds", "counter", "Processor time.", ("process", "bridge", "worker"))

ALL = (
    *(UP, BUILD, STARTED, RELAY_UP, LISTENING, OPEN, ACCEPTED, ENDED, BYTES, CONNECT, DURATION),
    *(SESSIONS_OPEN, SESSIONS, SESSIONS_ENDED, DATAGRAMS, DATAGRAM_BYTES),
    *(DIAL_FAILURES, LIMITED, ENDPOINT_UP, RELAY_RESTARTS, WORKER_RESTARTS, REPAIRS, LAG),
    *(MEMORY, FDS, MOST_FDS, CPU),
)

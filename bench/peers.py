"""The peers that are compared: tproxy, pairs of other relays in the same shape, and no relay at all.

A pair has tproxy's shape: one process in the bridge's namespace, one in the root namespace, a UNIX socket
between them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench import costs
from bench.checkout import HERE, Checkout
from bench.lab import BRIDGE, ENDPOINT, NAMES, PORTS, add_endpoints, add_relay_namespace, furnish
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

TPROXY, HAPROXY, NGINX, SOCAT, NO_RELAY = "tproxy", "HAProxy pair", "nginx pair", "socat pair", "no relay"

# tproxy of another checkout, which `make bench BASE=path` names.
BEFORE = "tproxy before"


@dataclass(frozen=True)
class Peer:
    """One way from a guest to its endpoints, on a host of its own."""

    name: str
    host: Hypervisor
    guest: Guest
    find: Callable[[], Sequence[int]]  # the process ids of its processes, inside the stand-in
    namespace: str  # the name of the bridge's namespace

    def cpu(self) -> float:
        return costs.cpu(self.host, self.find())

    def memory(self) -> costs.Memory:
        return costs.memory(self.host, self.find())

    def relay_memory(self) -> costs.Memory:
        """The memory of what runs in the bridge's namespace: each further bridge needs that once more."""
        return costs.memory(self.host, costs.inside(self.host, self.find(), self.namespace))

    def pipes(self) -> int:
        return costs.pipes(self.host, self.find())


# Guests of a benchmark have more connections than a guest may have by default (docs/limits.md).
# BENCH_LIMITS=default leaves the defaults. Older versions ignore these keys.
LIMITS = (
    ""
    if os.environ.get("BENCH_LIMITS") == "default"
    else "tproxy_max_connections_per_guest: 0\n"
    "tproxy_max_connections_per_bridge: 1000000\n"
    "tproxy_max_connections_to_endpoint: 1000000\n"
)


def tproxy_config(ports: Sequence[int] = PORTS, workers: int | None = None) -> str:
    """The text of a configuration; without ``workers`` their number is the default."""
    # One guest opens more connections than one guest may by default (docs/configuration.md).
    entries = (
        f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {port}, "
        "max_connections_per_guest: 0}\n"
        for port in ports
    )
    head = "tproxy_debug_level: 1\n" + LIMITS + (f"tproxy_workers: {workers}\n" if workers else "")
    return f"{head}tproxy:\n" + "".join(entries)


def build_tproxy(
    host: Hypervisor,
    more_bridges: Sequence[str] = (),
    *,
    name: str = TPROXY,
    code: Checkout = HERE,
    workers: int | None = None,
) -> Peer:
    """tproxy on the bridge that is measured, and on others with the same services."""
    guest = furnish(host)
    add_endpoints(host)
    config = host.write("/run/tproxy.yaml", tproxy_config(workers=workers))
    for bridge in more_bridges:
        host.add_bridge(bridge)
    for bridge in (BRIDGE, *more_bridges):
        code.tproxy(host, "hook", "up", "--bridge", bridge, "--config", config)
    return Peer(name, host, guest, partial(tproxy_processes, host), NAMES.namespace)


def tproxy_processes(host: Hypervisor) -> list[int]:
    """The process ids of daemon, relays, spawner and workers."""
    return costs.titled(host, "one_tproxy", "tproxy-")


# Room for as many connections as growth.py opens; the rest of 20,000 descriptors is for pipes.
_HAPROXY = """
global
  maxconn 8600
  maxpipes 1000
  nbthread {threads}
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""


def build_haproxy(host: Hypervisor) -> Peer:
    guest = furnish(host)
    add_endpoints(host)
    relay = add_relay_namespace(host)
    roots = start_haproxy(host, {BRIDGE: relay}, PORTS)
    return Peer(HAPROXY, host, guest, partial(costs.family, host, roots), relay)


def start_haproxy(
    host: Hypervisor, relays: Mapping[str, str], ports: Sequence[int], threads: int = 1
) -> list[int]:
    """Start one HAProxy in the root namespace, with so many threads, and one in each bridge's namespace.

    ``relays`` has the namespace of each bridge. Returns their process ids.
    """
    outer = _HAPROXY.format(threads=threads)
    programs = []
    for bridge, relay in relays.items():
        inner = _HAPROXY.format(threads=1)
        for port in ports:
            path, name = f"/run/{bridge}-{port}.sock", f"{bridge}-{port}"
            inner += f"listen {name}\n  bind {SERVICE_ADDRESS}:{port}\n  server s unix@{path}\n"
            outer += f"listen {name}\n  bind unix@{path}\n  server s {ENDPOINT}:{port}\n"
        programs.append((f"inner-{bridge}", inner, relay))
    roots = []
    for name, config, netns in (("outer", outer, None), *programs):
        path, pid_file = host.write(f"/run/{name}.cfg", config), f"/run/{name}.pid"
        host.run("haproxy", "-D", "-q", "-p", pid_file, "-f", path, netns=netns)
        roots.append(int(host.path(pid_file).read_text()))
    return roots


_NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1;
worker_rlimit_nofile 20000;
pid /run/{name}.pid;
error_log /var/log/{name}.log;
events {{ worker_connections 18000; }}
stream {{
    proxy_timeout 1h;
{servers}
}}
"""


def build_nginx(host: Hypervisor) -> Peer:
    guest = furnish(host)
    add_endpoints(host)
    relay = add_relay_namespace(host)
    inner = outer = ""
    for port in PORTS:
        listen, unix = f"{SERVICE_ADDRESS}:{port} backlog=4096", f"unix:/run/{port}.sock"
        inner += f"    server {{ listen {listen}; proxy_pass {unix}; }}\n"
        outer += f"    server {{ listen {unix} backlog=4096; proxy_pass {ENDPOINT}:{port}; }}\n"
    roots = []
    for name, servers, netns in (("outer", outer, None), ("inner", inner, relay)):
        config = _NGINX.format(name=name, servers=servers)
        host.run("nginx", "-c", host.write(f"/run/{name}.conf", config), netns=netns)
        roots.append(int(host.path(f"/run/{name}.pid").read_text()))
    return Peer(NGINX, host, guest, partial(costs.family, host, roots), relay)


def build_socat(host: Hypervisor) -> Peer:
    guest = furnish(host)
    add_endpoints(host)
    relay = add_relay_namespace(host)
    for port in PORTS:
        unix = f"/run/{port}.sock"
        # The guest closes when it has its answer, so socat need not wait half a second for that (its -t).
        for netns, listen, dial in (
            (None, f"UNIX-LISTEN:{unix},backlog=4096,fork", f"TCP:{ENDPOINT}:{port}"),
            (relay, f"TCP-LISTEN:{port},bind={SERVICE_ADDRESS},backlog=4096,fork", f"UNIX-CONNECT:{unix}"),
        ):
            # socat writes a line for each connection that does not end in both directions.
            host.popen("socat", "-b65536", listen, dial, netns=netns, stderr=subprocess.DEVNULL)
    for port in PORTS:
        host.run("sh", "-c", f"until ss -Hltn sport = :{port} | grep -q .; do sleep 0.05; done", netns=relay)
    return Peer(SOCAT, host, guest, lambda: costs.titled(host, "socat"), relay)


def build_no_relay(host: Hypervisor) -> Peer:
    """The limit: the endpoints run in the bridge's namespace themselves."""
    guest = furnish(host)
    relay = add_relay_namespace(host)
    add_endpoints(host, SERVICE_ADDRESS, relay)
    return Peer(NO_RELAY, host, guest, list, relay)


Builder = Callable[[Hypervisor], Peer]

BUILDERS: dict[str, Builder] = {
    TPROXY: build_tproxy,
    HAPROXY: build_haproxy,
    NGINX: build_nginx,
    SOCAT: build_socat,
    NO_RELAY: build_no_relay,
}

"""What is compared: tproxy, pairs of other relays in the same shape, and no relay at all.

A pair has tproxy's shape: one process in the bridge's namespace, one in the root namespace, a UNIX socket
between them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench import costs
from bench.lab import BRIDGE, ENDPOINT, NAMES, PORTS, add_endpoints, add_relay_namespace, furnish
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS

TPROXY, HAPROXY, NGINX, SOCAT, NO_RELAY = "tproxy", "HAProxy pair", "nginx pair", "socat pair", "no relay"


@dataclass(frozen=True)
class Peer:
    """Something that takes a guest to its endpoints."""

    name: str
    host: Hypervisor
    guest: Guest
    find: Callable[[], Sequence[int]]  # its processes, as the stand-in numbers them
    namespace: str  # the bridge's, by name

    def cpu(self) -> float:
        return costs.cpu(self.host, self.find())

    def memory(self) -> costs.Memory:
        return costs.memory(self.host, self.find())

    def relay_memory(self) -> costs.Memory:
        """Of what runs in the bridge's namespace, of which each further bridge has one more."""
        return costs.memory(self.host, costs.inside(self.host, self.find(), self.namespace))

    def pipes(self) -> int:
        return costs.pipes(self.host, self.find())


def tproxy_config(ports: Sequence[int] = PORTS) -> str:
    entries = (
        f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {port}}}\n" for port in ports
    )
    return "tproxy_debug_level: 1\ntproxy:\n" + "".join(entries)


def build_tproxy(host: Hypervisor, more_bridges: Sequence[str] = ()) -> Peer:
    """The bridge that is measured, and others with the same services."""
    guest = furnish(host)
    add_endpoints(host)
    config = host.write("/run/tproxy.yaml", tproxy_config())
    for bridge in more_bridges:
        host.add_bridge(bridge)
    for bridge in (BRIDGE, *more_bridges):
        host.tproxy("hook", "up", "--bridge", bridge, "--config", config)
    return Peer(TPROXY, host, guest, partial(tproxy_processes, host), NAMES.namespace)


def tproxy_processes(host: Hypervisor) -> list[int]:
    """Daemon, relays and spawner."""
    return costs.titled(host, "one_tproxy", "tproxy-")


# As many connections as growth is measured with; the rest of 20,000 descriptors is for pipes.
_HAPROXY = """
global
  maxconn 8600
  maxpipes 1000
  nbthread 1
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
    inner, outer = _HAPROXY, _HAPROXY
    for port in PORTS:
        inner += f"listen p{port}\n  bind {SERVICE_ADDRESS}:{port}\n  server s unix@/run/{port}.sock\n"
        outer += f"listen p{port}\n  bind unix@/run/{port}.sock\n  server s {ENDPOINT}:{port}\n"
    roots = []
    for name, config, netns in (("outer", outer, None), ("inner", inner, relay)):
        path, pid_file = host.write(f"/run/{name}.cfg", config), f"/run/{name}.pid"
        host.run("haproxy", "-D", "-q", "-p", pid_file, "-f", path, netns=netns)
        roots.append(int(host.path(pid_file).read_text()))
    return Peer(HAPROXY, host, guest, partial(costs.family, host, roots), relay)


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
        # The guest knows when an answer has ended; no need to wait for its end for half a second.
        for netns, listen, dial in (
            (None, f"UNIX-LISTEN:{unix},backlog=4096,fork", f"TCP:{ENDPOINT}:{port}"),
            (relay, f"TCP-LISTEN:{port},bind={SERVICE_ADDRESS},backlog=4096,fork", f"UNIX-CONNECT:{unix}"),
        ):
            # It complains of every connection that is not ended both ways.
            host.popen("socat", "-b65536", listen, dial, netns=netns, stderr=subprocess.DEVNULL)
    for port in PORTS:
        host.run("sh", "-c", f"until ss -Hltn sport = :{port} | grep -q .; do sleep 0.05; done", netns=relay)
    return Peer(SOCAT, host, guest, lambda: costs.titled(host, "socat"), relay)


def build_no_relay(host: Hypervisor) -> Peer:
    """The limit: the endpoints are in the namespace themselves."""
    guest = furnish(host)
    relay = add_relay_namespace(host)
    add_endpoints(host, SERVICE_ADDRESS, relay)
    return Peer(NO_RELAY, host, guest, list, relay)


BUILDERS: dict[str, Callable[[Hypervisor], Peer]] = {
    TPROXY: build_tproxy,
    HAPROXY: build_haproxy,
    NGINX: build_nginx,
    SOCAT: build_socat,
    NO_RELAY: build_no_relay,
}

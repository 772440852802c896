"""The hosts that are compared: tproxy, an HAProxy pair, and shell scripts that do what the hook does.

Each has a stand-in hypervisor of its own (tproxy/hypervisor.py) with a guest on a bridge, nginx that
answers three bytes, and iperf3; so none pays for another's rules. The HAProxy pair has tproxy's
shape: one process in the bridge's namespace, one in the root namespace, a UNIX socket between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tproxy.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC, TABLE, BridgeNames
from tproxy.plan import namespace_sysctls

BRIDGE = "br0"
ENDPOINT = "10.11.12.13"
HTTP_PORT, BULK_PORT = 8080, 5201

CONFIG = f"""
tproxy_debug_level: 1
tproxy:
- {{service_port: {HTTP_PORT}, remote_addr: {ENDPOINT}, remote_port: {HTTP_PORT}}}
- {{service_port: {BULK_PORT}, remote_addr: {ENDPOINT}, remote_port: {BULK_PORT}}}
"""

# Connections are kept for as long as the benchmark takes. Access logs would be measured, too.
NGINX = f"""
worker_processes 1;
pid /run/nginx.pid;
error_log /var/log/nginx.log;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path /run/nginx-body;
    proxy_temp_path /run/nginx-proxy;
    fastcgi_temp_path /run/nginx-fastcgi;
    uwsgi_temp_path /run/nginx-uwsgi;
    scgi_temp_path /run/nginx-scgi;
    server {{ listen {ENDPOINT}:{HTTP_PORT} backlog=4096; location / {{ return 200 "ok\\n"; }} }}
}}
"""

# 4,000 connections with a pipe each way are what fits into the 20,000 descriptors of small machines.
HAPROXY = """
global
  maxconn 4000
  nbthread 1
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""

# Where wrk finds what it is to report: its own report rounds, and its units vary.
REPORT = "/run/report.lua"
REPORT_LUA = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""

NAMES = BridgeNames(BRIDGE)
OURS, THEIRS, NETNS = NAMES.veth_namespace, NAMES.veth_bridge, NAMES.namespace
SYSCTLS = " ".join(f"net/{path}={value}" for path, value in namespace_sysctls(NAMES).items())
MAP, GUARD = f"ip {TABLE} {NAMES.map}", f"bridge {TABLE} {NAMES.arp_guard}"

IP_STEPS = f"""set -e
[ -e /run/netns/{NETNS} ] || ip netns add {NETNS}
[ -e /sys/class/net/{THEIRS} ] || ip link add {THEIRS} type veth peer name {OURS} netns {NETNS}
ip netns exec {NETNS} sysctl -qw {SYSCTLS}
ip -n {NETNS} link set {OURS} address {SERVICE_MAC}
ip -n {NETNS} address replace {SERVICE_ADDRESS}/32 dev {OURS}
ip -n {NETNS} link set {OURS} mtu 1500 up
ip -n {NETNS} route replace default dev {OURS} scope link
ip link set {THEIRS} master {BRIDGE} mtu 1500 up
"""

# The service map and the ARP guard, as SPEC 2 names them; the other guards are left out.
NFT_STEPS = f"""
nft add table ip {TABLE}
nft add map {MAP} '{{ type inet_service : ipv4_addr . inet_service; }}'
nft flush map {MAP}
nft add element {MAP} '{{ {HTTP_PORT} : {ENDPOINT} . {HTTP_PORT} }}'
nft add element {MAP} '{{ {BULK_PORT} : {ENDPOINT} . {BULK_PORT} }}'
nft add table bridge {TABLE}
nft add chain {GUARD} '{{ type filter hook forward priority filter; policy accept; }}'
nft flush chain {GUARD}
nft add rule {GUARD} arp daddr ip {SERVICE_ADDRESS} oifname != {THEIRS} drop
"""


@dataclass(frozen=True)
class Peer:
    """Something that takes a guest to its endpoints."""

    name: str
    host: Hypervisor
    guest: Guest
    processes: tuple[int, ...]  # as the stand-in numbers them


Hook = Callable[[], object]  # brings a bridge up, and up again


@contextmanager
def built() -> Iterator[tuple[tuple[Peer, Peer], dict[str, Hook]]]:
    with Hypervisor() as ours, Hypervisor() as theirs, Hypervisor() as plain, Hypervisor() as batched:
        hook = build_hook(ours)
        peers = build_tproxy(ours, hook), build_haproxy(theirs)
        hooks = {
            "`tproxy hook up`": hook,
            "shell script, `ip` and `nft` for each step": build_script(plain, NFT_STEPS),
            "the same, `nft` once for all its steps": build_script(batched, nft_at_once(batched, ours)),
        }
        yield peers, hooks


def furnish(host: Hypervisor) -> Guest:
    """What each host has: a bridge, a guest, and endpoints."""
    host.add_bridge(BRIDGE)
    guest = host.add_guest("guest", BRIDGE)
    guest.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
    host.ip(f"address add {ENDPOINT}/32 dev lo")
    host.run("nginx", "-c", host.write("/run/nginx.conf", NGINX))
    host.run("iperf3", "--server", "--daemon", "--bind", ENDPOINT, "--port", str(BULK_PORT))
    host.write(REPORT, REPORT_LUA)
    return guest


def build_hook(host: Hypervisor) -> Hook:
    config = host.write("/run/tproxy.yaml", CONFIG)
    return partial(host.tproxy, "hook", "up", "--bridge", BRIDGE, "--config", config)


def build_tproxy(host: Hypervisor, hook: Hook) -> Peer:
    guest = furnish(host)
    hook()
    lines = host.tproxy("status").stdout.splitlines()
    return Peer("tproxy", host, guest, tuple(int(line.split(": ")[1]) for line in lines))


def build_haproxy(host: Hypervisor) -> Peer:
    guest = furnish(host)
    host.add_guest("relay", BRIDGE, f"{SERVICE_ADDRESS}/32", route=False)
    host.ip("route add default dev eth0 scope link", netns="relay")
    inner, outer = HAPROXY, HAPROXY
    for port in (HTTP_PORT, BULK_PORT):
        inner += f"listen p{port}\n  bind {SERVICE_ADDRESS}:{port}\n  server s unix@/run/{port}.sock\n"
        outer += f"listen p{port}\n  bind unix@/run/{port}.sock\n  server s {ENDPOINT}:{port}\n"
    processes = []
    for name, config, netns in (("outer", outer, None), ("inner", inner, "relay")):
        path = host.write(f"/run/{name}.cfg", config)
        host.run("haproxy", "-D", "-q", "-p", f"/run/{name}.pid", "-f", path, netns=netns)
        processes.append(int(host.path(f"/run/{name}.pid").read_text()))
    return Peer("HAProxy pair", host, guest, tuple(processes))


def build_script(host: Hypervisor, nft_steps: str) -> Hook:
    """A shell script that does what `hook up` does."""
    host.add_bridge(BRIDGE)
    host.add_guest("guest", BRIDGE)
    script = partial(host.run, "sh", host.write("/run/hook.sh", IP_STEPS + nft_steps))
    script()
    return script


def nft_at_once(host: Hypervisor, like: Hypervisor) -> str:
    """One transaction that loads all that `hook up` has loaded on another host."""
    tables = like.run("nft", "list", "ruleset").stdout
    empty = "".join(f"add table {each} {TABLE}\ndelete table {each} {TABLE}\n" for each in ("ip", "bridge"))
    return f"nft -f {host.write('/run/ruleset.nft', empty + tables)}\n"

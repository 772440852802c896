"""UDP: DNS queries a second, their 99th percentile, and processor time, of tproxy and its peers.

``python -m bench.datagrams [--rounds N] [--seconds N]`` prints a table. In a guest, dnsperf asks from CLIENTS
ports; unbound answers from its own data.

The socat pair has tproxy's shape: a process in the bridge's namespace, one outside, and a UNIX socket between
them. nginx is the bound: one process in the bridge's namespace, and the name server there too, so that each
datagram is copied once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from bench import costs
from bench.lab import BRIDGE, ENDPOINT, NAMES, add_relay_namespace, furnish
from bench.peers import NGINX, SOCAT, TPROXY, Peer, tproxy_processes
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

PORT, CLIENTS = 53, 20

_UNBOUND = f"""
server:
    directory: "/"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 0
    do-ip6: no
    num-threads: 1
    module-config: "iterator"
    interface: {ENDPOINT}
    access-control: 0.0.0.0/0 allow
    so-rcvbuf: 0
    local-zone: "example." static
    local-data: "host.example. A 192.0.2.7"
remote-control:
    control-enable: no
"""


def start_server(host: Hypervisor, netns: str | None = None) -> None:
    host.ip(f"address replace {ENDPOINT}/32 dev lo", "link set lo up", netns=netns)
    config = host.write("/run/unbound.conf", _UNBOUND)
    host.popen("unbound", "-d", "-c", config, netns=netns, stderr=subprocess.DEVNULL)
    _await(host, netns, f"src {ENDPOINT}:{PORT}")


def _await(host: Hypervisor, netns: str | None, what: str) -> None:
    host.run("sh", "-c", f"until ss -Hlnu '{what}' | grep -q .; do sleep 0.05; done", netns=netns)


def build_tproxy(host: Hypervisor) -> Peer:
    guest = furnish(host)
    start_server(host)
    entry = f"- {{remote_addr: {ENDPOINT}, remote_port: {PORT}, protocol: udp}}\n"
    config = host.write("/run/tproxy.yaml", f"tproxy_debug_level: 1\ntproxy:\n{entry}")
    host.tproxy("hook", "up", "--bridge", BRIDGE, "--config", config)
    return Peer(TPROXY, host, guest, partial(tproxy_processes, host), NAMES.namespace)


def build_socat(host: Hypervisor) -> Peer:
    guest = furnish(host)
    start_server(host)
    relay = add_relay_namespace(host)
    unix = "/run/dns.sock"  # 5: SOCK_SEQPACKET, which keeps datagrams apart
    for netns, listen, dial in (
        (None, f"UNIX-LISTEN:{unix},type=5,backlog=4096,fork", f"UDP:{ENDPOINT}:{PORT}"),
        (relay, f"UDP-LISTEN:{PORT},bind={SERVICE_ADDRESS},reuseaddr,fork", f"UNIX-CONNECT:{unix},type=5"),
    ):
        host.popen("socat", "-T5", listen, dial, netns=netns, stderr=subprocess.DEVNULL)
    _await(host, relay, f"src {SERVICE_ADDRESS}:{PORT}")
    return Peer(SOCAT, host, guest, lambda: costs.titled(host, "socat"), relay)


_NGINX = f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1;
pid /run/nginx-dns.pid;
error_log /var/log/nginx-dns.log;
events {{ worker_connections 18000; }}
stream {{
    server {{ listen {SERVICE_ADDRESS}:{PORT} udp; proxy_pass {ENDPOINT}:{PORT}; proxy_timeout 5s; }}
}}
"""


def build_nginx(host: Hypervisor) -> Peer:
    guest = furnish(host)
    relay = add_relay_namespace(host)
    start_server(host, relay)
    host.run("nginx", "-c", host.write("/run/nginx-dns.conf", _NGINX), netns=relay)
    root = int(host.path("/run/nginx-dns.pid").read_text())
    _await(host, relay, f"src {SERVICE_ADDRESS}:{PORT}")
    return Peer(NGINX, host, guest, partial(costs.family, host, [root]), relay)


BUILDERS: dict[str, Callable[[Hypervisor], Peer]] = {
    TPROXY: build_tproxy,
    SOCAT: build_socat,
    f"{NGINX.partition(' ')[0]}, one namespace": build_nginx,
}


def measure(peer: Peer, seconds: float) -> tuple[float, float, float, int]:
    """Return queries a second, p99 in ms, processor seconds of 10,000 queries, and how many were lost."""
    peer.host.write("/run/queries", "host.example A\n")
    before = peer.cpu()
    command = ("dnsperf", "-s", SERVICE_ADDRESS, "-d", "/run/queries", "-l", f"{seconds:g}")
    asked = peer.guest.run(*command, "-c", str(CLIENTS), "-q", str(CLIENTS), "-v", timeout=seconds + 60)
    used = peer.cpu() - before
    lines = asked.stdout.splitlines()
    times = sorted(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("> NOERROR"))
    lost = sum(line.startswith("> T ") for line in lines)
    if not times:
        raise SystemExit(f"{peer.name}: no query was answered\n{asked.stdout[-2000:]}")
    return len(times) / seconds, times[len(times) * 99 // 100] * 1000, used / len(times) * 10_000, lost


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.datagrams", description="DNS by UDP, against peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    found: dict[str, list[tuple[float, float, float, int]]] = {}
    hosts = {name: Hypervisor() for name in BUILDERS}
    try:
        peers = {name: BUILDERS[name](host.__enter__()) for name, host in hosts.items()}
        for number in range(options.rounds + 1):  # in turns, and the first one only warms up
            for name, peer in peers.items():
                row = measure(peer, options.seconds)
                if number:
                    found.setdefault(name, []).append(row)
                print(f"round {number}: {name}: {row}", file=sys.stderr)
    finally:
        for host in hosts.values():
            host.__exit__(None, None, None)
    print("| | queries/s | p99 | processor time of 10,000 queries | lost |\n| --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        rate, late, used = (statistics.median(row[place] for row in rows) for place in range(3))
        lost = sum(row[3] for row in rows)
        print(f"| {name} | {rate:,.0f} | {late:.2f} ms | {used * 1000:.0f} ms | {lost} |")


if __name__ == "__main__":
    main()

"""The figures of the core against an HAProxy pair: ``python -m bench.core [--rounds N] [--seconds S]``.

Each peer has a stand-in hypervisor of its own (tproxy/hypervisor.py) with a guest on a bridge, nginx
that answers three bytes, and iperf3; so neither pays for the other's rules. The HAProxy pair has
tproxy's shape: one process in the bridge's namespace, one in the root namespace, a UNIX socket
between. Rounds alternate who is first. The result is a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tabulate import tabulate

from tproxy.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC, BridgeNames
from tproxy.plan import namespace_sysctls

NEEDED = {"haproxy": "haproxy", "nginx": "nginx-light", "iperf3": "iperf3", "wrk": "wrk", "nft": "nftables"}

BRIDGE = "br0"
ENDPOINT = "10.11.12.13"
HTTP_PORT, BULK_PORT = 8080, 5201
IDLE_CONNECTIONS = 2000

# Of `hook up`, in one round: it takes a tenth of a second, too little to be timed once.
HOOKS = 10

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

# wrk's own report rounds, and its units vary.
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""

IDLE = """
import signal, socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
for each in held:
    each.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    each.recv(4096)
print("ready", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Axis:
    key: str
    title: str
    unit: str
    wanted: str  # of the ratio to the peer, unless it says otherwise
    digits: int = 0


AXES = (
    Axis("up", "bulk up, 1 stream", "Gbit/s", "≥ 1.8", 1),
    Axis("down", "bulk down, 1 stream", "Gbit/s", "≥ 1.8", 1),
    Axis("rate 1", "keep-alive, 1 connection", "requests/s", "≥ 1.0"),
    Axis("p50 1", "its p50", "µs", ""),
    Axis("rate 64", "keep-alive, 64 connections", "requests/s", "≥ 1.0"),
    Axis("p99 64", "its p99", "µs", ""),
    Axis("new", "new connections, 32 at a time", "1/s", "≥ 1.0"),
    Axis("errors", "errors that clients saw, all rounds", "", "0 errors"),
    Axis("private", "private memory per idle connection", "bytes", "< 1024 bytes"),
    Axis("pss", "PSS per idle connection", "bytes", ""),
    Axis("hook", "`hook up`, healthy bridge; peer: the same by `ip` and `nft`", "ms", "≤ 1.0"),
)


@dataclass(frozen=True)
class Peer:
    """Something that takes a guest to its endpoints."""

    name: str
    host: Hypervisor
    guest: Guest
    processes: tuple[int, ...]  # as the stand-in numbers them
    hook: Callable[[], object]  # brings the bridge up, and up again


# Building


@contextmanager
def hosts() -> Iterator[tuple[Peer, Peer]]:
    with Hypervisor() as ours, Hypervisor() as theirs, Hypervisor() as by_script:
        yield build_tproxy(ours), build_haproxy(theirs, build_script(by_script, like=ours))


def furnish(host: Hypervisor) -> Guest:
    """What each host has: a bridge, a guest, and endpoints."""
    host.add_bridge(BRIDGE)
    guest = host.add_guest("guest", BRIDGE)
    guest.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
    host.ip(f"address add {ENDPOINT}/32 dev lo")
    host.run("nginx", "-c", host.write("/run/nginx.conf", NGINX))
    host.run("iperf3", "--server", "--daemon", "--bind", ENDPOINT, "--port", str(BULK_PORT))
    host.write("/run/report.lua", REPORT)
    return guest


def build_tproxy(host: Hypervisor) -> Peer:
    guest = furnish(host)
    config = host.write("/run/tproxy.yaml", CONFIG)
    hook = partial(host.tproxy, "hook", "up", "--bridge", BRIDGE, "--config", config)
    hook()
    lines = host.tproxy("status").stdout.splitlines()
    return Peer("tproxy", host, guest, tuple(int(line.split(": ")[1]) for line in lines), hook)


def build_haproxy(host: Hypervisor, hook: Callable[[], object]) -> Peer:
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
    return Peer("HAProxy pair", host, guest, tuple(processes), hook)


def build_script(host: Hypervisor, like: Hypervisor) -> Callable[[], object]:
    """A shell script with the steps of `hook up`, one `ip` each, and one nft transaction."""
    host.add_bridge(BRIDGE)
    host.add_guest("guest", BRIDGE)
    names = BridgeNames(BRIDGE)
    ours, theirs, netns = names.veth_namespace, names.veth_bridge, names.namespace
    sysctls = " ".join(f"net/{path}={value}" for path, value in namespace_sysctls(names).items())
    tables = like.run("nft", "list", "ruleset").stdout
    empty = "".join(
        f"add table {each} one_tproxy\ndelete table {each} one_tproxy\n" for each in ("ip", "bridge")
    )
    ruleset = host.write("/run/ruleset.nft", empty + tables)
    script = host.write(
        "/run/hook.sh",
        f"""set -e
        [ -e /run/netns/{netns} ] || ip netns add {netns}
        [ -e /sys/class/net/{theirs} ] || ip link add {theirs} type veth peer name {ours} netns {netns}
        ip netns exec {netns} sysctl -qw {sysctls}
        ip -n {netns} link set {ours} address {SERVICE_MAC}
        ip -n {netns} address replace {SERVICE_ADDRESS}/32 dev {ours}
        ip -n {netns} link set {ours} mtu 1500 up
        ip -n {netns} route replace default dev {ours} scope link
        ip link set {theirs} master {BRIDGE} mtu 1500 up
        nft -f {ruleset}
        """,
    )
    return partial(host.run, "sh", script)


# Measuring: each gives figures by the keys of AXES


def idle(peer: Peer, _: float) -> dict[str, float]:
    """What connections cost in the processes' memory that were used once and do nothing."""
    peer.guest.get(SERVICE_ADDRESS, HTTP_PORT)
    before = memory(peer)
    program = [sys.executable, "-c", IDLE, SERVICE_ADDRESS, str(HTTP_PORT), str(IDLE_CONNECTIONS)]
    with peer.host.serve(*program, netns=peer.guest.name) as holder:
        after = memory(peer)
        holder.kill()
    return {key: (after[key] - before[key]) / IDLE_CONNECTIONS for key in after}


def memory(peer: Peer) -> dict[str, float]:
    """Bytes that would be free without these processes, and those of their share of what is shared."""
    kilobytes = {"private": 0, "pss": 0}
    for pid in peer.processes:
        for line in peer.host.path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, amount, *_ = line.split()
            if name in ("Private_Clean:", "Private_Dirty:"):
                kilobytes["private"] += int(amount)
            elif name == "Pss:":
                kilobytes["pss"] += int(amount)
    return {key: 1024.0 * amount for key, amount in kilobytes.items()}


def bulk(key: str, *options: str) -> Callable[[Peer, float], dict[str, float]]:
    def measure(peer: Peer, seconds: float) -> dict[str, float]:
        done = peer.guest.run(
            *("iperf3", "--json", "--client", SERVICE_ADDRESS, "--port", str(BULK_PORT)),
            *("--time", f"{seconds:.0f}", *options),
            timeout=seconds + 30,
        )
        return {key: json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9}

    return measure


def requests(
    connections: int, keys: tuple[str, str, str], *options: str
) -> Callable[[Peer, float], dict[str, float]]:
    """Figures of wrk: requests per second, and percentiles; a key that no axis has is not shown."""

    def measure(peer: Peer, seconds: float) -> dict[str, float]:
        done = peer.guest.run(
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"),
            *("--script", "/run/report.lua", *options, f"http://{SERVICE_ADDRESS}:{HTTP_PORT}/"),
            timeout=seconds + 30,
        )
        report = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        count, microseconds, p50, p99, errors = map(int, report.split()[1:])
        return dict(zip(keys, (count / microseconds * 1e6, p50, p99), strict=True)) | {"errors": errors}

    return measure


def hook(peer: Peer, _: float) -> dict[str, float]:
    began = time.monotonic()
    for _ in range(HOOKS):
        peer.hook()
    return {"hook": (time.monotonic() - began) * 1000 / HOOKS}


EACH_ROUND = (
    hook,
    bulk("up"),
    bulk("down", "--reverse"),
    requests(1, ("rate 1", "p50 1", "p99 1")),
    requests(64, ("rate 64", "p50 64", "p99 64")),
    requests(32, ("new", "p50 new", "p99 new"), "--header", "Connection: close"),
)

Figures = dict[str, dict[str, list[float]]]  # of a peer, by axis, in the order measured


def measure(peers: Sequence[Peer], rounds: int, seconds: float) -> Figures:
    figures: Figures = {peer.name: {} for peer in peers}

    def take(job: Callable[[Peer, float], Mapping[str, float]], order: Sequence[Peer]) -> None:
        for peer in order:
            for key, figure in job(peer, seconds).items():
                figures[peer.name].setdefault(key, []).append(figure)

    take(idle, peers)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for job in EACH_ROUND:
            take(job, peers[:: -1 if number % 2 else 1])
    return figures


# Showing


def table(figures: Figures) -> str:
    ours, theirs = figures.values()
    rows = []
    for axis in AXES:
        one, other = figure(axis, ours[axis.key]), figure(axis, theirs[axis.key])
        ratio = f"{one / other:.2f}" if other else ""
        title = f"{axis.title}, {axis.unit}" if axis.unit else axis.title
        rows.append([title, spread(axis, ours), spread(axis, theirs), ratio, axis.wanted])
    return tabulate(rows, ["axis", *figures, "ratio", "wanted"], "pipe", disable_numparse=True)


def figure(axis: Axis, measured: Sequence[float]) -> float:
    """One for all rounds: errors add up, of all else it is the median."""
    return sum(measured) if axis.key == "errors" else statistics.median(measured)


def spread(axis: Axis, figures: Mapping[str, Sequence[float]]) -> str:
    measured = figures[axis.key]
    shown = f"{figure(axis, measured):,.{axis.digits}f}"
    if len(measured) == 1 or axis.key == "errors":
        return shown
    return f"{shown} ({min(measured):,.{axis.digits}f} to {max(measured):,.{axis.digits}f})"


def circumstances(rounds: int, seconds: float) -> str:
    model = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = [
        said(*command)
        for command in (
            ("haproxy", "-v"),
            ("nginx", "-v"),
            ("iperf3", "--version"),
            ("wrk", "-v"),
            ("nft", "-v"),
        )
    ]
    return "\n".join(
        (
            f"- {os.cpu_count()} x {model}; Linux {platform.release()}; Python {platform.python_version()}",
            f"- tproxy {said('git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty')}; "
            + "; ".join(versions),
            f"- {rounds} rounds of {seconds:.0f} s, peers alternating; median (least to greatest); "
            "ratio is tproxy to the other",
            f"- memory: {IDLE_CONNECTIONS} connections that did one request; all processes of a peer",
        )
    )


def said(*command: str) -> str:
    """The first line that a command says, wherever it says it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.core", description="tproxy against an HAProxy pair")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options = parser.parse_args()
    missing = sorted({NEEDED[program] for program in NEEDED if not shutil.which(program)})
    if missing:
        sys.exit(f"missing; run: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("must be run as root")
    with hosts() as peers:
        figures = measure(peers, options.rounds, options.seconds)
    print(table(figures))
    print()
    print(circumstances(options.rounds, options.seconds))


if __name__ == "__main__":
    main()

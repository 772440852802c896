"""The figures of the core against an HAProxy pair: ``python -m bench.core [--rounds N] [--seconds S]``.

Both peers are there all the time and measured in turns, so that both have the machine's good and bad
moments. The result is Markdown: medians, with the least and the greatest.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from bench.peers import BULK_PORT, HTTP_PORT, REPORT, Hook, Peer, built
from tproxy.model import SERVICE_ADDRESS

NEEDED = {"haproxy": "haproxy", "nginx": "nginx-light", "iperf3": "iperf3", "wrk": "wrk", "nft": "nftables"}

IDLE_CONNECTIONS = 2000

HOOKS = 20  # times that each is run: one takes less than a tenth of a second

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
    wanted: str  # of the ratio to the peer, unless it says otherwise
    digits: int = 0


AXES = (
    Axis("up", "bulk up, 1 stream, Gbit/s", "≥ 1.8", 1),
    Axis("down", "bulk down, 1 stream, Gbit/s", "≥ 1.8", 1),
    Axis("1 rate", "keep-alive, 1 connection, requests/s", "≥ 1.0"),
    Axis("1 p50", "its p50, µs", ""),
    Axis("64 rate", "keep-alive, 64 connections, requests/s", "≥ 1.0"),
    Axis("64 p99", "its p99, µs", ""),
    Axis("new rate", "new connections/s, 32 at a time", "≥ 1.0"),
    Axis("private", "private memory per idle connection, bytes", "< 1024 bytes"),
    Axis("pss", "PSS per idle connection, bytes", ""),
)


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


def requests(name: str, connections: int, *options: str) -> Callable[[Peer, float], dict[str, float]]:
    def measure(peer: Peer, seconds: float) -> dict[str, float]:
        done = peer.guest.run(
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"),
            *("--script", REPORT, *options, f"http://{SERVICE_ADDRESS}:{HTTP_PORT}/"),
            timeout=seconds + 30,
        )
        report = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        count, microseconds, p50, p99, errors = map(int, report.split()[1:])
        rate = count / microseconds * 1e6
        return {f"{name} rate": rate, f"{name} p50": p50, f"{name} p99": p99, "errors": errors}

    return measure


EACH_ROUND = (
    bulk("up"),
    bulk("down", "--reverse"),
    requests("1", 1),
    requests("64", 64),
    requests("new", 32, "--header", "Connection: close"),
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


def measure_hooks(hooks: Mapping[str, Hook]) -> dict[str, list[float]]:
    """Milliseconds, each on a bridge where everything is in order."""
    taken: dict[str, list[float]] = {name: [] for name in hooks}
    for _ in range(HOOKS):
        for name, hook in hooks.items():
            began = time.monotonic()
            hook()
            taken[name].append((time.monotonic() - began) * 1000)
    return taken


# Showing


def table(figures: Figures) -> str:
    ours, theirs = figures.values()
    rows = []
    for axis in AXES:
        one, other = ours[axis.key], theirs[axis.key]
        ratio = f"{statistics.median(one) / statistics.median(other):.2f}"
        rows.append([axis.title, spread(one, axis.digits), spread(other, axis.digits), ratio, axis.wanted])
    errors = [str(sum(each["errors"])) for each in (ours, theirs)]
    rows.append(["errors that clients saw, all rounds", *errors, "", "0"])
    return tabulate(rows, ["axis", *figures, "ratio", "wanted"], "pipe", disable_numparse=True)


def hook_table(taken: Mapping[str, Sequence[float]]) -> str:
    ours, *_ = (statistics.median(each) for each in taken.values())
    rows = [[name, spread(each), f"{ours / statistics.median(each):.2f}"] for name, each in taken.items()]
    head = ["a healthy bridge brought up, ms", "time", "tproxy's ratio to it, wanted ≤ 1.0"]
    return tabulate(rows, head, "pipe", disable_numparse=True)


def spread(measured: Sequence[float], digits: int = 0) -> str:
    median = f"{statistics.median(measured):,.{digits}f}"
    if len(measured) == 1:
        return median
    return f"{median} ({min(measured):,.{digits}f} to {max(measured):,.{digits}f})"


def circumstances(rounds: int, seconds: float) -> str:
    """What a reader needs to judge the figures, or to get them again."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].partition(": ")[2] if cpus else platform.machine()
    here = str(Path(__file__).parent)
    lines = (
        f"{os.cpu_count()} x {model}; Linux {platform.release()}; Python {platform.python_version()}",
        f"tproxy {said('git', '-C', here, 'describe', '--always', '--dirty')}; {said('haproxy', '-v')}; "
        f"{said('nginx', '-v')}; {said('iperf3', '--version')}; {said('wrk', '-v')}; {said('nft', '-v')}",
        f"{rounds} rounds of {seconds:.0f} s, in turns; median (least to greatest); ratio: tproxy to other",
        f"memory: after one request on each of {IDLE_CONNECTIONS} connections; of daemon and relay",
    )
    return "\n".join(f"- {line}" for line in lines)


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
    with built() as (peers, hooks):
        taken = measure_hooks(hooks)
        figures = measure(peers, options.rounds, options.seconds)
    print(table(figures))
    print()
    print(hook_table(taken))
    print()
    print(circumstances(options.rounds, options.seconds))


if __name__ == "__main__":
    main()

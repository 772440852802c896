"""Measures what each decision on the data path gives: tproxy against copies of itself without it.

``python -m bench.variants [--rounds N] [--seconds S] [NAME]...`` prints Markdown. A variant is a copy of this
tree with some text replaced. When the tree no longer has that text, the variant fails and says so.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from bench import axes, report
from bench.lab import BRIDGE, NAMES, add_endpoints, furnish
from bench.peers import Peer, tproxy_config, tproxy_processes
from bench.results import Results
from bench.rounds import FAILURES
from tproxy.lab.hypervisor import Hypervisor

TREE = Path(__file__).parents[1] / "tproxy"

AS_IS = "as it is"


class Change(NamedTuple):
    """Text to replace in a module, which is named by its path below tproxy/, without ``.py``."""

    module: str
    old: str
    new: str


def constant(module: str, name: str, value: str, new: str) -> list[Change]:
    """The change of a constant of a module from one value to another."""
    return [Change(module, f"\n{name} = {value}\n", f"\n{name} = {new}\n")]


VARIANTS: Mapping[str, Sequence[Change]] = {
    AS_IS: [],
    "splice for all": [
        Change("datapath/connection", "reading.pass_on(pipes)", "False"),
        Change(
            "datapath/splice",
            "        pipe = self._pipe\n        try:\n",
            "        if self._pipe is None:\n            self._go_by_pipe(pipes)\n"
            "        pipe = self._pipe\n        try:\n",
        ),
        # Without a recv before it, splice itself has to report the end of file.
        Change("datapath/splice", "return count == 0\n            self", "self"),
    ],
    "recv and send for all": constant("datapath/splice", "MAX_PIPES", "112", "0"),
    "splice from 16 KiB on": constant("datapath/splice", "SMALL", "64 * 1024", "16 * 1024"),
    "splice from 256 KiB on": constant("datapath/splice", "SMALL", "64 * 1024", "256 * 1024"),
    "pipes of 64 KiB": constant("datapath/splice", "PIPE_BYTES", "512 * 1024", "64 * 1024"),
    "pipes of 256 KiB": constant("datapath/splice", "PIPE_BYTES", "512 * 1024", "256 * 1024"),
    "pipes of 1 MiB": constant("datapath/splice", "PIPE_BYTES", "512 * 1024", "1024 * 1024"),
    "no pool of pipes": constant("datapath/splice", "SPARE_PIPES", "32", "0"),
    "one round a direction": constant("datapath/splice", "ROUNDS", "8", "1"),
    "accepting one by one": constant("relay/listening", "BATCH", "64", "1"),
    "accepting at most 16": constant("relay/listening", "BATCH", "64", "16"),
    "relay not a batch process": [Change("relay/relay", "os.SCHED_BATCH", "os.SCHED_OTHER")],
    "no reading before dialling": [Change("datapath/connection", "self.to_endpoint.read_ahead()", "pass")],
    "no holding back of the ACK": [
        Change("datapath/connection", "socket.TCP_QUICKACK, 0)", "socket.TCP_QUICKACK, 1)")
    ],
    "no sending right behind connect": [
        Change("datapath/connection", "if self.to_endpoint.send_ahead():", "if False:")
    ],
    "FIN in a packet of its own": [Change("datapath/splice", "_SEND | socket.MSG_MORE", "_SEND")],
    "the host's congestion control": [
        Change("kernel/tcp", 'socket.TCP_CONGESTION, b"reno")', "socket.TCP_NODELAY, 1)")
    ],
    "the kernel's own window": [
        Change("kernel/tcp", "socket.TCP_WINDOW_CLAMP, NEAR_WINDOW)", "socket.TCP_NODELAY, 1)")
    ],
    "sleeping at once": constant("worker/worker", "ALERT", "50e-6", "0.0"),
    "alert for 200 µs": constant("worker/worker", "ALERT", "50e-6", "200e-6"),
    "8 events a batch": constant("kernel/loop", "EVENTS_PER_BATCH", "256", "8"),
}

# A change of the configuration instead of the tree: one log line for each connection.
LOGGING = "log level INFO"

# The best that two workers of one daemon can do: they share a relay and a configuration.
TWO = "two instances, half the load each"

OTHERS = [*(name for name in VARIANTS if name != AS_IS), LOGGING, TWO]

MEASURES: Mapping[str, axes.Measure] = {
    "new rate": partial(axes.new_connections, 32),
    "1x1 rate": partial(axes.requests, 1, 1),
    "1x64 rate": partial(axes.requests, 1, 64),
    "65536x64 rate": partial(axes.requests, 65536, 64),
    "up1": partial(axes.bulk, "up1", 1, False),
    "down1": partial(axes.bulk, "down1", 1, True),
    "up8": partial(axes.bulk, "up8", 8, False),
}
HALVES: Mapping[str, tuple[str, axes.Measure]] = {
    "new rate": ("new rate", partial(axes.new_connections, 16)),
    "1x64 rate": ("1x32 rate", partial(axes.requests, 1, 32)),
    "65536x64 rate": ("65536x32 rate", partial(axes.requests, 65536, 32)),
    "up8": ("up4", partial(axes.bulk, "up4", 4, False)),
}
TITLES = {
    "new rate": "new/s",
    "1x1 rate": "1 B, 1 conn.",
    "1x64 rate": "1 B, 64 conn.",
    "65536x64 rate": "64 KiB, 64 conn.",
    "up1": "bulk up, 1",
    "down1": "down, 1",
    "up8": "up, 8",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.variants")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each measurement")
    parser.add_argument("variant", nargs="*", choices=[*OTHERS, []], help="measure these variants only")
    options = parser.parse_args()
    names = [AS_IS, *(options.variant or OTHERS)]
    results = Results(report.circumstances(options.rounds, options.seconds))
    with built(names, results) as peers:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for key, measure in MEASURES.items():
                for name, some in list(peers.items())[:: -1 if number % 2 else 1]:
                    try:
                        if name != TWO:
                            results.add(name, measure(some[0], options.seconds))
                        elif key in HALVES:
                            results.add(name, {key: together(some, *HALVES[key], options.seconds)})
                    except FAILURES as problem:
                        results.failed(name, key, problem)
    print("\n".join(f"- {line}" for line in results.about), table(results, names), sep="\n\n")


@contextmanager
def built(names: Sequence[str], results: Results) -> Iterator[dict[str, list[Peer]]]:
    with ExitStack() as hosts:
        peers = {}
        for name in names:
            try:
                count = 2 if name == TWO else 1
                peers[name] = [build(hosts.enter_context(Hypervisor()), name) for _ in range(count)]
            except (ValueError, *FAILURES) as problem:
                results.failed(name, "start", problem)
        yield peers


def build(host: Hypervisor, name: str) -> Peer:
    guest = furnish(host)
    add_endpoints(host)
    text = tproxy_config()
    if name == LOGGING:
        text = text.replace("tproxy_debug_level: 1", "tproxy_debug_level: 2")
    config = host.write("/run/tproxy.yaml", text)
    place = host.path("/run/variant")
    copy(place, VARIANTS.get(name, ()))
    command = [sys.executable, "-m", "tproxy", "hook", "up", "--bridge", BRIDGE, "--config", config]
    host.run(*command, env={"PYTHONPATH": "/run/variant"})
    return Peer(name, host, guest, partial(tproxy_processes, host), NAMES.namespace)


def copy(place: Path, changes: Sequence[Change]) -> None:
    """Copy the package and change the copy. Raises ValueError when that changes nothing or breaks it."""
    shutil.copytree(TREE, place / TREE.name)
    for change in changes:
        module = place / TREE.name / f"{change.module}.py"
        text = module.read_text()
        if change.old not in text:
            raise ValueError(f"{change.module}.py has no {change.old.strip()!r}")
        module.write_text(text.replace(change.old, change.new))
    if not compileall.compile_dir(place, quiet=2):
        raise ValueError(f"it does not compile: {', '.join(change.new for change in changes)}")


def together(peers: Sequence[Peer], key: str, measure: axes.Measure, seconds: float) -> float:
    """The sum of a figure of several peers that are measured at the same time."""
    with ThreadPoolExecutor() as pool:
        return sum(figures[key] for figures in pool.map(lambda peer: measure(peer, seconds), peers))


def table(results: Results, names: Sequence[str]) -> str:
    """Figures of tproxy as it is, and the ratio of each variant to it: below 1, the decision is right."""
    whole = results.figures[AS_IS]
    rows = [
        [AS_IS, *(report.spread(whole[key], 1 if key.startswith(("up", "down")) else 0) for key in MEASURES)]
    ]
    for name in names[1:]:
        quotients = (_quotient(results, name, key) for key in MEASURES)
        rows.append([name, *("-" if each is None else f"{each:.2f}" for each in quotients)])
    return tabulate(rows, ["", *(TITLES[key] for key in MEASURES)], "pipe", disable_numparse=True)


def _quotient(results: Results, name: str, key: str) -> float | None:
    theirs, ours = results.median(name, key), results.median(AS_IS, key)
    return theirs / ours if theirs and ours else None


if __name__ == "__main__":
    main()

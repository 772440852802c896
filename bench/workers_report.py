"""The tables of ``make bench-workers``, and the goals."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from bench import claims, report
from bench.axes import AXES, Axis, Goal
from bench.claims import Claim, Figure
from bench.peers import BEFORE, HAPROXY, TPROXY
from bench.results import Results

ONE, TWO, HAPROXY_2 = "tproxy, 1 worker", "tproxy, 2 workers", "HAProxy pair, 2 threads"

# Numbers of workers and bridges where they grow, and the part of a core that each worker gets then.
SCALE, SHARE = (1, 2, 4, 8), 1 / 20

# What counts as the same as before: medians of a version that is measured twice differ by so much.
NOISE, NOISE_OF_P99 = 0.05, 0.15

# The wanted figures of several workers, by those of one.
_SCALED_GOALS = {2: 1.9, 4: 3.7, 8: 7.0}

_TWO_BRIDGES, _ONE_BRIDGE = "two bridges", "one bridge, 8 guests"
_LAYOUTS = (_TWO_BRIDGES, "two bridges, 4 guests each", _ONE_BRIDGE)
_GREEDS = {
    "connects": "8 processes that connect",
    "streams": "16 bulk streams",
    "idle": "3,000 idle connections",
    "slow": "500 slow readers",
}
# Where the other guest is (bench/fairness.py, PLACES), and its p99 by the control, at most.
_PLACES = {"": ("another bridge", 2.0), "same ": ("the same bridge", 3.0)}
_LOADS = {"requests": "requests/s", "bulk": "bulk, Gbit/s", "new": "new connections/s"}


def scaled(workers: int) -> str:
    """The name of the peer with so many workers that are held to a part of a core."""
    return f"{workers} held worker{'s' if workers > 1 else ''}"


# The axes of make bench that must not get worse.
_KEPT = [
    axis
    for heading in (
        "Bulk, Gbit/s",
        "New connections, 32 at a time",
        "Requests and answers on connections that stay",
    )
    for axis in AXES[heading]
    if not axis.key.startswith(("1024x", "65536x")) and not axis.key.endswith("p999")
]
_KEPT_MEMORY = [
    axis
    for axis in AXES["Memory of all processes of a peer"]
    if axis.key in ("private idle", "pss idle", "private relay", "pss relay", "private rest", "pss rest")
]


def _as_before(peer: str, axis: Axis) -> Claim:
    """The claim that a figure is the same as before, within noise, or better."""
    lower_is_better = axis.key.endswith(("p50", "p99")) or axis in _KEPT_MEMORY
    noise = NOISE_OF_P99 if axis.key.endswith("p99") else NOISE
    goal = Goal("≤", 1 + noise) if lower_is_better else Goal("≥", 1 - noise)
    return Claim(f"{peer}: {_title(axis)}, by before", Figure(peer, axis.key), goal, Figure(BEFORE, axis.key))


def _title(axis: Axis) -> str:
    """The title of an axis that does not depend on the row above it."""
    what, _, figure = axis.key.rpartition(" ")
    if figure not in ("rate", "p50", "p99"):
        return axis.title
    load = "new connections" if what == "new" else f"requests on {what.partition('x')[2]} connections"
    return f"{load}, {'per second' if figure == 'rate' else f'{figure}, µs'}"


def _two(kind: str, figure: str, to: str, goal: float) -> Claim:
    axis = f"{_TWO_BRIDGES} {kind}"
    return Claim(
        f"two workers, two bridges: {figure}, by {to}", Figure(TWO, axis), Goal("≥", goal), Figure(to, axis)
    )


CLAIMS: Sequence[Claim] = [
    *(_as_before(peer, axis) for peer in (ONE, TPROXY) for axis in _KEPT),
    *(
        _as_before(TPROXY, axis)
        for axis in _KEPT_MEMORY
        if axis.key in ("private idle", "pss idle", "private relay", "pss relay")
    ),
    _two("new", "new connections/s", ONE, 1.5),
    _two("new", "new connections/s", HAPROXY, 1.2),
    _two("new", "new connections/s", HAPROXY_2, 1.15),
    _two("requests", "requests/s", ONE, 1.6),
    _two("requests", "requests/s", HAPROXY_2, 1.4),
    *(
        Claim(
            f"two workers, one bridge: {_LOADS[kind]}, by two bridges",
            Figure(TWO, f"{_ONE_BRIDGE} {kind}"),
            Goal("≥", 0.9),
            Figure(TWO, f"{_TWO_BRIDGES} {kind}"),
        )
        for kind in ("new", "requests")
    ),
    *(
        Claim(
            f"two workers: p99 on {where} beside {greed}, by the control, µs",
            Figure(TWO, f"{place}{key} p99"),
            Goal("≤", goal),
            Figure(TWO, f"{place}{key} control p99"),
        )
        for place, (where, goal) in _PLACES.items()
        for key, greed in _GREEDS.items()
    ),
    *(
        Claim(
            f"{workers} workers, a twentieth of a core each: {title}, by one worker",
            Figure(scaled(workers), kind),
            Goal("≥", goal),
            Figure(scaled(1), kind),
        )
        for workers, goal in _SCALED_GOALS.items()
        for kind, title in _LOADS.items()
    ),
    Claim(
        "private memory of a worker, at rest", Figure(TWO, "private worker rest"), Goal("≤", 8), unit=" MB"
    ),
    Claim(
        "private memory of a worker, after load", Figure(TWO, "private worker used"), Goal("≤", 8), unit=" MB"
    ),
    Claim("connections lost when the daemon is killed", Figure(TWO, "kill lost"), Goal("≤", 0)),
    Claim("connections refused when the daemon is killed", Figure(TWO, "kill refused"), Goal("≤", 0)),
]


def markdown(results: Results) -> str:
    """All tables; the last one has the goals."""
    parts = ["\n".join(f"- {line}" for line in results.about)]
    layouts = [
        Axis(f"{layout} {kind}{p99}", f"{layout}: {_LOADS[kind]}" if not p99 else "worst p99, µs")
        for layout in _LAYOUTS
        for kind in ("new", "requests")
        for p99 in ("", " p99")
    ]
    held = [Axis(key, title, 2 if key == "bulk" else 0) for key, title in _LOADS.items()]
    memory = [
        Axis("private worker rest", "private, largest worker, at rest, MB", 2),
        Axis("private worker used", "private, largest worker, after load, MB", 2),
        Axis("private all rest", "private, all processes, at rest, MB", 2),
        Axis("private all used", "private, all processes, after load, MB", 2),
    ]
    kills = [
        Axis("kill lost", "connections lost"),
        Axis("kill refused", "connections refused"),
        Axis("kill connections", "connections opened"),
        Axis("kill answers", "requests answered"),
        Axis("kill longest", "longest wait for an answer, ms"),
    ]
    places = [(place, where) for place, (where, _) in _PLACES.items()]
    crowd = (ONE, TWO, HAPROXY, HAPROXY_2, BEFORE)
    for heading, axes, peers in (
        ("One worker, and the default", [*_KEPT, *_KEPT_MEMORY], (BEFORE, ONE, TPROXY, HAPROXY)),
        ("Two workers", layouts, crowd),
        *((f"A guest on {where}, beside a greedy one", _beside(place), crowd) for place, where in places),
        ("Workers that have a twentieth of a core each", held, tuple(map(scaled, SCALE))),
        ("Memory of workers, on a host with two bridges", memory, crowd),
        ("`kill -9` of the daemon under load, 5 times", kills, (TWO, BEFORE)),
        ("Errors and steal", _DISTURBED, (*crowd, TPROXY, *map(scaled, SCALE))),
    ):
        if text := table(results, axes, peers):
            parts += [f"### {heading}", text]
    if text := ratios_to_control(results, crowd):
        parts += ["### p99 beside a greedy guest, by the control", text]
    if text := claims.table(results, CLAIMS):
        parts += ["### Goals", text]
    if results.problems:
        parts += ["### What failed", "\n".join(f"- {line}" for line in results.problems)]
    return "\n\n".join(parts)


_UNITS = {"connects": "connections", "streams": "Gbit/s", "idle": "connections", "slow": "bytes read"}
_DISTURBED = [Axis("errors", "errors that clients saw", summed=True), Axis("stolen", "steal, per cent", 1)]


def _beside(place: str) -> list[Axis]:
    """The axes of a guest at that place, beside each greedy guest."""
    return [
        Axis(f"{place}calm p99", "nobody: p99, µs"),
        *(
            axis
            for key, greed in _GREEDS.items()
            for axis in (
                Axis(f"{place}{key} control p99", f"{greed}, control: p99, µs"),
                Axis(f"{place}{key} p99", f"{greed}: p99, µs"),
                Axis(f"{place}{key} control rate", "control: requests/s"),
                Axis(f"{place}{key} rate", "requests/s"),
                Axis(f"{place}{key} control greed", f"control: {_UNITS[key]} of the greedy", _digits(key)),
                Axis(f"{place}{key} greed", f"{_UNITS[key]} of the greedy", _digits(key)),
            )
        ),
    ]


def _digits(greed: str) -> int:
    return 1 if greed == "streams" else 0


def ratios_to_control(results: Results, peers: Sequence[str]) -> str:
    """The ratio of p99 beside each greedy load to that beside its control; "" without a figure."""
    there = [peer for peer in peers if results.median(peer, "calm p99")]
    rows = []
    for place, (where, goal) in _PLACES.items():
        for key, greed in _GREEDS.items():
            claims_of = [
                Claim(
                    "",
                    Figure(peer, f"{place}{key} p99"),
                    Goal("≤", goal),
                    Figure(peer, f"{place}{key} control p99"),
                )
                for peer in there
            ]
            values = [claim.value(results) for claim in claims_of]
            cells = ("-" if value is None else f"{value:.2f}" for value in values)
            rows.append([f"{where}, {greed}", *cells])
    head = ["p99 by the control", *there]
    return tabulate(rows, head, "pipe", disable_numparse=True) if there else ""


def table(results: Results, axes: Sequence[Axis], peers: Sequence[str]) -> str:
    """A row for each axis with a figure, and a column for each of these peers with one; "" without a row."""
    there = [peer for peer in peers if any(results.figures.get(peer, {}).get(axis.key) for axis in axes)]
    rows = []
    for axis in axes:
        measured = [results.figures[peer].get(axis.key) for peer in there]
        if any(measured):
            rows.append([axis.title, *(report.cell(axis, each) for each in measured)])
    return tabulate(rows, ["", *there], "pipe", disable_numparse=True) if rows else ""

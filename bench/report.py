"""Writes results as Markdown between two markers of a page."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.axes import AXES, Axis, Goal
from bench.hooks import CROWD, CROWD_BRIDGES, IP_NFT, IP_NFT_ONCE
from bench.peers import BEFORE, BUILDERS, HAPROXY, NO_RELAY, TPROXY
from bench.results import Point, Results

BEGIN, END = "<!-- bench: begin (written by make bench) -->", "<!-- bench: end -->"

HOOK_AXES = [
    Axis("hook cold", "a bridge that has nothing yet, ms"),
    Axis("hook warm", "a bridge where everything is in order, ms", goal=Goal("≤", 0.8, IP_NFT)),
]

# Columns of growth tables: the key in a point, the heading, and the decimals.
_SPEED = [("p50", "p50, µs", 0), ("p99", "p99, µs", 0), ("rate", "requests/s", 0), ("new rate", "new/s", 0)]
_HOOKS = [("hook cold", "hook cold, ms", 0), ("hook warm", "hook warm, ms", 0), ("reload", "reload, ms", 0)]
GROWTH = {
    "connections": ("open, idle connections", [*_SPEED, ("memory", "private memory of them, MB", 2)]),
    "bridges": ("bridges of 10 services", [*_SPEED, *_HOOKS, ("memory", "PSS, all, MB", 1)]),
    "services": (
        "services of one bridge",
        [*_SPEED, ("hook changed", "hook, change, ms", 0), *_HOOKS[1:], ("memory", "PSS, all, MB", 1)],
    ),
}


def markdown(results: Results, images: str) -> str:
    """All tables. ``images`` is the path of the plots, relative to the page."""
    peers = [name for name in (*BUILDERS, BEFORE) if name in results.figures]
    parts = ["\n".join(f"- {line}" for line in results.about)]
    for heading, axes in AXES.items():
        if table := comparison(results, axes, peers, HAPROXY):
            parts += [f"### {heading}", table]
    hooks = [name for name in (TPROXY, IP_NFT, IP_NFT_ONCE) if results.median(name, "hook warm")]
    if hooks:
        parts += ["### `hook up`, against shell scripts of the same steps"]
        parts += [comparison(results, HOOK_AXES, hooks, IP_NFT)]
    if together := hooks_together(results):
        parts.append(together)
    if results.growth:
        parts += [
            "### Growth",
            *(growth(results, curve, images) for curve in GROWTH if curve in results.growth),
        ]
    if further := per_further_bridge(results):
        parts.append(further)
    if results.problems:
        parts += ["### What failed", "\n".join(f"- {line}" for line in results.problems)]
    return "\n\n".join(parts)


def comparison(results: Results, axes: Sequence[Axis], peers: Sequence[str], against: str) -> str:
    """A row for each axis with a figure of any peer, and a column for each peer; "" without a row."""
    others = [against, *(each for each in (NO_RELAY, BEFORE) if each in peers)]
    rows = []
    for axis in axes:
        measured = {peer: results.figures[peer].get(axis.key) for peer in peers}
        if not any(measured.values()):
            continue
        row = [axis.title, *(cell(axis, each) for each in measured.values())]
        row += [ratio(results, axis, other) for other in others]
        rows.append([*row, verdict(results, axis)])
    if not rows:
        return ""
    head = ["", *peers, *(f"tproxy / {other.removeprefix('tproxy ')}" for other in others), "goal"]
    return tabulate(rows, head, "pipe", disable_numparse=True)


def cell(axis: Axis, measured: Sequence[float] | None) -> str:
    if not measured:
        return "-"
    return f"{sum(measured):,.0f}" if axis.summed else spread(measured, axis.digits)


def spread(measured: Sequence[float], digits: int = 0) -> str:
    """The median, with the least and the greatest figure in brackets."""
    median = f"{statistics.median(measured):,.{digits}f}"
    least, greatest = f"{min(measured):,.{digits}f}", f"{max(measured):,.{digits}f}"
    return median if least == greatest else f"{median} ({least} to {greatest})"


def quotient(results: Results, axis: Axis, other: str) -> float | None:
    ours, theirs = results.median(TPROXY, axis.key), results.median(other, axis.key)
    return ours / theirs if ours is not None and theirs else None


def ratio(results: Results, axis: Axis, other: str) -> str:
    value = quotient(results, axis, other)
    return "" if value is None else f"{value:.2f}"


def verdict(results: Results, axis: Axis) -> str:
    if axis.goal is None:
        return ""
    wanted = f"{axis.goal.at} {axis.goal.value:g}"
    value = quotient(results, axis, axis.goal.to)
    return wanted if value is None else f"{wanted} {'✓' if axis.goal.met(value) else '✗'}"


def growth(results: Results, curve: str, images: str) -> str:
    title, columns = GROWTH[curve]
    parts = []
    for peer, points in results.growth[curve].items():
        rows = [
            [f"{point['n']:,.0f}", *(at(point, key, digits) for key, _, digits in columns)]
            for point in points
        ]
        head = [title, *(heading for _, heading, _ in columns)]
        parts += [f"{peer}:", tabulate(rows, head, "pipe", disable_numparse=True)]
    return "\n\n".join([*parts, f"![growth with {title}]({images}/{curve}.svg)"])


def at(point: Point, key: str, digits: int) -> str:
    return f"{point[key]:,.{digits}f}" if key in point else ""


def hooks_together(results: Results) -> str:
    one_by_one = results.median(TPROXY, "hooks one by one")
    at_once = results.median(TPROXY, "hooks at once")
    if one_by_one is None or at_once is None:
        return ""
    met = "✓" if at_once <= 2 * one_by_one else "✗"
    return (
        f"{CROWD} hooks for {CROWD_BRIDGES} bridges that have nothing yet take {one_by_one:,.0f} ms "
        f"one after the other and {at_once:,.0f} ms at once: "
        f"{at_once / one_by_one:.2f} times as long (goal: ≤ 2 {met})."
    )


def per_further_bridge(results: Results) -> str:
    points = results.growth.get("bridges", {}).get(TPROXY, [])
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    bridges = last["n"] - first["n"]
    pss, private = ((last[key] - first[key]) / bridges for key in ("memory", "private"))
    met = "✓" if pss <= 4 else "✗"
    return (
        f"Each further bridge takes {pss:.2f} MB PSS (goal: ≤ 4 {met}, better 1.5), {private:.2f} MB private."
    )


def put(page: Path, text: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace the text between the markers. Raises ValueError when the page lacks one of them."""
    first, last = markers
    before, begin, rest = page.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{page} needs a line {first} and, below it, a line {last}")
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}")


def circumstances(rounds: int, seconds: float) -> list[str]:
    """Machine, versions and rounds: what a reader needs to judge the figures, or to repeat them."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].partition(": ")[2] if cpus else platform.machine()
    here = str(Path(__file__).parent)
    return [
        f"{os.cpu_count()} x {model}; Linux {platform.release()}, default congestion control "
        f"{Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()}; "
        f"Python {platform.python_version()}",
        f"tproxy {said('git', '-C', here, 'describe', '--always', '--dirty')}; {said('haproxy', '-v')}; "
        f"{said('nginx', '-v')}; {said('socat', '-V', line=1)}; {said('iperf3', '--version')}; "
        f"{said('wrk', '-v')}; {said('nft', '-v')}",
        f"{rounds} rounds of {seconds:.0f} s, in turns; median (least to greatest); ratios of medians",
    ]


def said(*command: str, line: int = 0) -> str:
    """One line of a command's output, be it on stdout or stderr; the command's name when there is none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[line] if line < len(lines) else command[0]

"""The benchmark: ``make bench``, or ``python -m bench [--quick] [--only PART]... [--base PATH]``.

Compares tproxy with its peers (peers.py) on all axes (axes.py), in turns (rounds.py), and repeats what other
virtual machines disturbed (quiet.py). Times the hook (hooks.py), and measures how cost grows (growth.py).

A full run writes docs/performance.md, docs/img and bench/results.json; a quick or partial run writes to
build/bench instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from bench import growth, hooks, plot, report, rounds
from bench.checkout import checkout
from bench.peers import BEFORE, BUILDERS, build_tproxy
from bench.results import Results

ROOT = Path(__file__).parents[1]
PAGE, IMAGES, RESULTS = ROOT / "docs/performance.md", ROOT / "docs/img", ROOT / "bench/results.json"
TRIAL = ROOT / "build/bench"

PARTS = ("peers", "hooks", "growth")

# Programs that every run needs, each with Debian's package. Without HAProxy or socat only that peer fails.
NEEDED = {"iperf3": "iperf3", "wrk": "wrk", "nginx": "nginx-light", "nft": "nftables"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="tproxy against its peers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s, short curves")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="measure this part only; can be repeated"
    )
    parser.add_argument(
        "--peer", action="append", choices=list(BUILDERS), help="measure this peer only; can be repeated"
    )
    parser.add_argument("--base", metavar="PATH", help="compare with tproxy of another checkout as well")
    parser.add_argument(
        "--report", action="store_true", help="write the page again, from the results of the last full run"
    )
    options = parser.parse_args()
    if options.report:
        publish(Results.load(RESULTS))
        return
    check_surroundings()
    if options.quick:
        options.rounds, options.seconds = 2, 1.0
    parts = options.only or PARTS
    builders = {name: BUILDERS[name] for name in options.peer or BUILDERS}

    results = Results(report.circumstances(options.rounds, options.seconds))
    if options.base:
        base = checkout(options.base)
        builders[BEFORE] = partial(build_tproxy, name=BEFORE, code=base)
        results.about.append(f"{BEFORE}: {base.described()}")
    if "peers" in parts:
        rounds.compare(builders, options.rounds, options.seconds, results)
    if "hooks" in parts:
        hooks.measure(results)
    if "growth" in parts:
        growth.measure(options.seconds, results, scale=0.25 if options.quick else 1.0)

    if options.quick or options.only or options.peer:
        results.save(TRIAL / RESULTS.name)
        plot.draw(results, TRIAL)
        print(report.markdown(results, "."))
        print(f"{TRIAL}: results.json and plots", file=sys.stderr)
    else:
        results.save(RESULTS)
        publish(results)


def check_surroundings() -> None:
    """Exit with a message where a program or a privilege that every run needs is missing."""
    missing = sorted(package for program, package in NEEDED.items() if not shutil.which(program))
    if missing:
        sys.exit(f"programs are missing; run: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("must be run as root")


def publish(results: Results) -> None:
    """Write the page and its plots."""
    plot.draw(results, IMAGES)
    report.put(PAGE, report.markdown(results, IMAGES.name))
    print(f"written: {PAGE}, {IMAGES}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""The soak: ``make soak MINUTES=n``, or ``python -m bench.soak [--minutes N] [--seed N] [--report PATH]``.

Guests have mixed traffic, every byte of which both ends hash (exchange.py). Meanwhile the host is reloaded,
restarted, changed, and its processes are killed (plan.py, host.py). Then it says which connections were lost
without a fault that explains it, and what leaked (judgement.py). The exit code is 0 when there was neither.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from bench.report import circumstances, put
from bench.soak import plan, report
from bench.soak.host import Host, Traffic
from bench.soak.judgement import Event, Sample, judge, left_over
from tproxy.lab.hypervisor import Hypervisor

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
MARKERS = "<!-- soak: begin (written by make soak SOAK=--page) -->", "<!-- soak: end -->"

# How often, at intervals of a second, the host is looked at for what may be a leak.
TRIES = 10

REPORT = Path(__file__).parents[2] / "build/soak/report.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.soak", description="a soak of tproxy, with faults")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the order of what is done")
    parser.add_argument("--report", type=Path, default=REPORT, help="the file for the report")
    parser.add_argument("--page", action="store_true", help="put the report into docs/reliability.md too")
    options = parser.parse_args()
    seconds = options.minutes * 60
    options.report.parent.mkdir(parents=True, exist_ok=True)
    with Hypervisor() as hypervisor:
        try:
            text, well = soak(Host(hypervisor), seconds, options.seed)
        finally:
            for path in hypervisor.path("/var/log").glob("one_tproxy*.log"):
                (options.report.parent / path.name).write_text(path.read_text(errors="replace"))
    options.report.write_text(text)
    if options.page:
        put(PAGE, text.rstrip(), MARKERS)
    print(text)
    print(f"written: {options.report}, with the logs beside it", file=sys.stderr)
    sys.exit(0 if well else 1)


def soak(host: Host, seconds: float, seed: int) -> tuple[str, bool]:
    """Return the report, and whether all went well."""
    events: list[Event] = []
    # What a process allocates once, or an action leaves the first time, comes before the first sample.
    warm_up = begin(host)
    _do(host, plan.STEADY, seed, 3.0, 0.2, events, [])
    before = at_rest(host, warm_up)
    started, pause = time.monotonic(), plan.pause(seconds)
    # No process is replaced, so what is left over is a leak.
    steady: list[Sample] = []
    first = begin(host)
    _do(host, plan.STEADY, seed, seconds * plan.STEADY_PART, pause, events, steady)
    between = at_rest(host, first, before)
    second = begin(host)
    _do(host, plan.FAULTS, seed, seconds * (1 - plan.STEADY_PART), pause, events, [])
    events.append(host.actions()["restart"]())
    after = at_rest(host, second, before)
    traffic = [*warm_up, *first, *second]
    losses = [loss for one in traffic for loss in one.losses]
    judgement = judge(losses, events, before, (between, after), steady)
    counts: Counter[str] = Counter()
    for one in traffic:
        counts.update(one.counts)
    counts["losses"] = len(losses)
    about = [
        f"{(time.monotonic() - started) / 60:.1f} minutes, {len(host.guests)} guests on 3 bridges, "
        f"2 workers; order {seed}",
        circumstances(1, seconds)[0],
    ]
    return report.markdown(about, counts, events, judgement, before, (between, after)), judgement.well


def begin(host: Host) -> list[Traffic]:
    """Start the traffic of all guests; returns when it flows."""
    traffic = [Traffic(guest, host.calm) for guest in host.guests]
    for one in traffic:
        one.await_ready()
    return traffic


def at_rest(host: Host, traffic: list[Traffic], before: Sample | None = None) -> Sample:
    """Let the traffic finish, and return the host's figures without it.

    A command that has just returned may still have a connection to the daemon, and the like. So what is more
    than ``before`` is looked at again for a while: a leak stays.
    """
    for one in traffic:
        one.end()
    host.await_settled()
    for _ in range(TRIES):
        sample = host.sample()
        if before is None or not left_over(before, sample):
            break
        time.sleep(1.0)
    return sample


def _do(
    host: Host,
    names: tuple[str, ...],
    seed: int,
    seconds: float,
    pause: float,
    events: list[Event],
    samples: list[Sample],
) -> None:
    """Do one action after the other, until each was done once and the time is over."""
    does = host.actions()
    until = time.monotonic() + seconds
    for number, name in enumerate(plan.actions(names, seed)):
        if number >= len(names) and time.monotonic() > until:
            return
        print(f"{time.monotonic():.3f} {name}", file=sys.stderr)
        events.append(does[name]())
        samples.append(host.sample())
        time.sleep(pause)


if __name__ == "__main__":
    main()

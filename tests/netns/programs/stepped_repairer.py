"""The watcher's repairs, step by step and without a clock: ``stepped_repairer.py CONFIGURATION``.

Prints ``ready`` and its pid. Then each line of its input is one request, in JSON: what to do, and after how
many steps to stop (0: when nothing is left to do). What to do is a shell command, or a list of a function's
name (``functions`` below) and its arguments. The answer, one line of JSON, lists what the repairer logged and
what the function returned.

Whatever is due at some time is due in the next step. Only repairs that failed wait until they are told to
be tried again.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tproxy.bridge import nftables
from tproxy.config import reader
from tproxy.kernel.loop import Loop, Timer
from tproxy.kernel.netlink import LinkEvents, Ruleset, RulesetEvents
from tproxy.model import Settings
from tproxy.operations import reconcile
from tproxy.watch import repair

said: list[Any] = []


class Steps(Loop):
    """A loop in which timers do not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.due = 0  # timers that have not run yet
        self.retries: list[Callable[[], None]] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        if seconds == repair.RETRY:
            self.retries.append(call)
            return Timer(0, call)

        def counted() -> None:
            self.due -= 1
            call()

        self.due += 1
        return super().call_later(0, counted)

    def step(self) -> None:
        """Handle what is there to be handled, once."""
        super().call_later(0, self.stop)
        self.run()

    def retry(self) -> None:
        """Try again what failed."""
        retries, self.retries = self.retries, []
        for call in retries:
            call()


class Events:
    """The kernel's messages, which can be kept from the repairer."""

    def __init__(self, loop: Loop, repairer: repair.Repairer) -> None:
        self._repairer = repairer
        self._lost = False
        LinkEvents(loop, self._links_changed, repairer.doubt_all)
        RulesetEvents(loop, self._ruleset_changed, repairer.doubt_all)

    def lose(self, lost: bool) -> None:
        self._lost = lost

    def _links_changed(self, names: set[str], masters: set[str]) -> None:
        if not self._lost:
            self._repairer.links_changed(names | masters)

    def _ruleset_changed(self, change: Ruleset) -> None:
        if not self._lost:
            self._repairer.ruleset_changed(change)


class Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


def log_repairs_that_did_nothing() -> None:
    """Have a repair logged that took the host's lock, but found nothing to repair."""
    really_repair = reconcile.repair

    def logged(bridge: str, *arguments: Any, **options: Any) -> list[str]:
        done = really_repair(bridge, *arguments, **options)
        if not (done or options["restored"]) and nftables.read_map(bridge):
            said.append(f"bridge {bridge}: nothing to repair")
        return done

    setattr(reconcile, "repair", logged)  # noqa: B010 - mypy refuses the plain assignment


def main() -> None:
    config = reader.load(sys.argv[1])
    logging.getLogger("tproxy.watch.repair").addHandler(Log())
    logging.lastResort = None
    log_repairs_that_did_nothing()
    loop = Steps()
    repairer = repair.Repairer(loop, lambda: Settings(config.log_level))
    events = Events(loop, repairer)

    def find_changed_namespaces() -> bool:
        repairer.check_namespaces()
        return loop.due > 0

    functions: dict[str, Callable[..., Any]] = {
        "check_namespaces": repairer.check_namespaces,
        "doubt_all": repairer.doubt_all,
        "find_changed_namespaces": find_changed_namespaces,
        "is_missing_maps": repairer.is_missing_maps,
        "lose_events": events.lose,
        "retry": loop.retry,
        "uplinks": lambda bridge: sorted(repairer.uplinks(bridge)),
    }
    print("ready", os.readlink("/proc/self"), flush=True)
    for line in sys.stdin:
        what, steps = json.loads(line)
        said.clear()
        if isinstance(what, list):
            answer = functions[what[0]](*what[1:])
            if answer is not None:
                said.append(answer)
        elif what:
            subprocess.run(what, shell=True, check=True)
        loop.step()
        while loop.due and steps != 1:
            loop.step()
            steps -= 1
        print(json.dumps(said), flush=True)


main()

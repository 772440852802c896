"""Run commands, and print what netlink reports of each: ``netlink_listener.py``.

Prints ``ready``. Runs each line of standard input as a shell command, and prints as a line of JSON everything
that was reported of it. The kernel sends its messages before a command ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents, Ruleset, RulesetEvents


class Listener:
    """Collects what is reported."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []

    def links_touched(self, names: set[str], masters: set[str]) -> None:
        self.heard.append(["links", sorted(names), sorted(masters)])

    def ruleset_touched(self, told: Ruleset) -> None:
        self.heard.append(["ruleset", sorted(told.names), sorted(told.comments), told.maps_deleted])


def main() -> None:
    loop, listener = Loop(), Listener()
    LinkEvents(loop, listener.links_touched, lambda: listener.heard.append(["links lost"]))
    RulesetEvents(loop, listener.ruleset_touched, lambda: listener.heard.append(["ruleset lost"]))
    print("ready", flush=True)
    for line in sys.stdin:
        listener.heard.clear()
        subprocess.run(line, shell=True, check=True)
        loop.call_later(0, loop.stop)
        loop.run()
        print(json.dumps(listener.heard), flush=True)


if __name__ == "__main__":
    main()

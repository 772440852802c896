"""Changes, stops and ends the squids of a node as services of systemd: tproxy-egress-squid@.service."""

from __future__ import annotations

import time

from tproxy.egress.policy.reader import load
from tproxy.egress.service import handover, pause
from tproxy.egress.service.systemctl import systemctl, tried
from tproxy.egress.squid.compiler import SLOTS, Surroundings

MANAGER = "tproxy-egress-squid.service"
DRAINING = "tproxy-egress-drain.service"
INSTANCES = tuple(f"tproxy-egress-squid@{slot}.service" for slot in SLOTS)

_LOOK = 2.0  # seconds between looks at a squid that ends its downloads


def change(node: Surroundings) -> None:
    """Put a new squid in the place of the one that runs, or start the first one. Raises TproxyError."""

    def start(new: Surroundings) -> None:
        systemctl("start", f"tproxy-egress-squid@{new.slot}.service")

    def show(line: str) -> None:
        print(line, flush=True)

    if handover.hand_over(load(node.layout.policy), node, start, show) is not None:
        systemctl("restart", "--no-block", DRAINING)


def stop() -> None:
    """Stop all squids now, unless systemd is about to start them again: then ``change`` follows."""
    done = tried("list-jobs", "--no-legend", MANAGER)
    if "restart" not in done.stdout.split():
        systemctl("stop", *INSTANCES)


def drain(node: Surroundings) -> None:
    """End the squid in whose place another one is, when nothing is under way there any more."""
    since, ports = time.monotonic(), pause.ports(load(node.layout.policy))
    old = handover.other(handover.current(node))
    while (pid := handover.process(old)) is not None:
        if handover.is_drained(pid, ports, since):
            handover.end(pid)
        time.sleep(_LOOK)

"""Restart a watcher, and flush nftables while the watcher waits for the host's lock.

``flush_while_it_waits.py WATCHER``, which is a pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.netns.waiting import eventually
from tproxy.process import run_directory


def waits_for_a_lock(pid: str) -> bool:
    """Whether the process is blocked in flock(2): "->" marks such lines of /proc/locks, proc(5)."""
    with open("/proc/locks") as locks:
        lines = [line.split() for line in locks]
    return any(line[1] == "->" and line[5] == pid for line in lines)


def main() -> None:
    watcher = sys.argv[1]
    with run_directory.lock():
        os.kill(int(watcher), signal.SIGUSR2)
        for _ in eventually():
            if waits_for_a_lock(watcher):
                break
        subprocess.run(["nft", "flush", "ruleset"], check=True)


main()

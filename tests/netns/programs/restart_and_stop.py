"""Restart a watcher, and stop everything while its new code starts: ``restart_and_stop.py WATCHER``.

``WATCHER`` is a pid. Meanwhile the new code waits until somebody writes to /run/go
(slow_start/sitecustomize.py).
"""

from __future__ import annotations

import os
import signal
import sys

from tproxy.operations import life
from tproxy.process import run_directory, table


def main() -> None:
    os.kill(int(sys.argv[1]), signal.SIGUSR2)
    while table.find().watchers:
        pass
    with open("/run/go", "w"):
        pass
    with run_directory.lock():
        life.stop()


main()

"""Run ``tproxy`` and kill it when it has started the daemon: ``hook_killed_at_start.py ARGUMENT...``."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from tproxy.cli import main as command
from tproxy.daemon import launcher


def die(reader: int) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still there after SIGKILL")


def main() -> None:
    launcher.expect_ready = die
    command.run()


main()

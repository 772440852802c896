"""The loop of `tproxy names run`: a pass every few seconds, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from tproxy.errors import TproxyError
from tproxy.inward.names.keeper import Keeper

# While servers do not answer, the pause doubles up to this many seconds.
LONGEST_PAUSE = 60.0


def run(keeper: Keeper, every: float) -> None:
    """Make passes, ``every`` seconds apart. Returns when the process is told to end."""
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    pause = every
    while not ending.is_set():
        try:
            worked = keeper.once()
            keeper.tell("pass", "")
        except TproxyError as error:  # such as a file that cannot be used: all stays as it is
            worked = False
            keeper.tell("pass", f"{error}: nothing changes")
        pause = every if worked else min(2 * pause, max(LONGEST_PAUSE, every))
        ending.wait(pause)

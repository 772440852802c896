"""Run ``tproxy`` and kill it at the N-th call of one of its functions: ``kill_at.py N ARGUMENT...``

So a test can interrupt a command at every step. With N = 0 the command runs to its end, and the number of
calls is printed. Calls that look whether a process has ended do not count: their number is a matter of luck.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import tproxy
from tproxy.cli import main as command
from tproxy.process import table

PACKAGE = os.path.dirname(tproxy.__file__)
LOOK = table._runs.__code__


def main() -> None:
    last = int(sys.argv.pop(1))
    calls = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code is not LOOK:
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)

    pid = os.getpid()
    sys.setprofile(count)
    try:
        command.run()
    finally:
        sys.setprofile(None)
        if not last and os.getpid() == pid:  # not in a child of it
            print(calls)


main()

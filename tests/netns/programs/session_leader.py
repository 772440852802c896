"""The leader of a session, with one child in it: ``session_leader.py``.

Prints ``ready`` when the child is there. Both stay until they are killed.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    os.setsid()
    if os.fork() == 0:
        signal.pause()
    print("ready", flush=True)
    signal.pause()


main()

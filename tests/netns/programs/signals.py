"""Run a command as a caller with unusual signals does: ``signals.py ignored|blocked COMMAND...``.

``ignored``: SIGCHLD is ignored, so that ended children are reaped by the kernel. A shell's trap does not do:
dash resets this one. ``blocked``: all signals are blocked, as in a thread of a caller that leaves signals to
another thread.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    how, *command = sys.argv[1:]
    if how == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif how == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    else:
        sys.exit(f"neither ignored nor blocked: {how}")
    os.execv(command[0], command)


main()

"""Prints its pid, and executes Python with its arguments: ``announced.py ARGUMENT...``.

SIGINT has its default effect again. A shell, such as that of a CI, ignores it in the programs that it starts
in the background.
"""

from __future__ import annotations

import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
print(os.getpid(), flush=True)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

"""A process that goes on as the installed code."""

from __future__ import annotations

import subprocess
import sys

# timeit runs a statement, and so stands for a module that has not come to its handlers yet.
PROGRAM = """
import signal
from tproxy.process import service_manager

signal.signal(signal.SIG{0}, lambda *_: None)
statement = "import os, signal; os.kill(os.getpid(), signal.SIG{0})"
service_manager.execute_module("timeit", "-n1", "-r1", statement)
"""


def test_a_signal_that_comes_before_the_new_code_handles_it_does_not_end_the_process() -> None:
    for name in ("HUP", "USR1", "USR2"):
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(name)], capture_output=True, check=False)
        assert (name, done.returncode, done.stderr) == (name, 0, b"")

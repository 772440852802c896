"""Progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = "from tproxy.cli.progress import bar\nwith bar('Hashing', 2000) as seen: seen(500); seen(1500)"


def test_a_terminal_shows_what_is_done() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run(
            [sys.executable, "-c", PROGRAM], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"}
        )
        os.close(theirs)
        shown = terminal.read(65536)
    assert b"Hashing" in shown
    assert b"2.0/2.0 kB" in shown


def test_a_file_gets_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")

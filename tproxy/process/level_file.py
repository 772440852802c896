"""The log level that an operator has set, in the run directory: the daemon writes it, a watcher reads it.

It is there only while such a level counts (``daemon.log_level``).
"""

from __future__ import annotations

import os
from contextlib import suppress

from tproxy.process import run_directory

FILE = "log-level"


def read() -> int | None:
    """Return the level, one of ``logging``; None where nobody has set one."""
    try:
        with open(f"{run_directory.directory()}/{FILE}") as file:
            return int(file.read(8))
    except (OSError, ValueError):
        return None


def write(level: int | None) -> bool:
    """Note the level, or that there is none. Return whether that changes anything. Raises OSError."""
    before = read()
    path = f"{run_directory.directory()}/{FILE}"
    if level is None:
        with suppress(FileNotFoundError):
            os.unlink(path)
    else:
        with open(f"{path}.new", "w") as file:
            file.write(str(level))
        os.rename(f"{path}.new", path)
    return level != before

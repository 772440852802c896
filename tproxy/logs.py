"""Log files that survive rotation, and what to do when the disk does not take a line."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path

DIRECTORY = Path("/var/log")
DAEMON_LOG = "one_tproxy.log"
DEFAULT_LEVEL = logging.INFO

_FORMAT = "%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S"


class _ReopenedFile(logging.FileHandler):
    """Appends to a file; ``reopen`` goes on in a new file of that name after a rotation."""

    def reopen(self) -> None:
        self.acquire()
        try:
            self.close()
            self.stream = self._open()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk loses log lines, never connections."""

    def _open(self) -> TextIOWrapper:
        try:
            return super()._open()
        except OSError:
            # No directory, read-only, full: running without a log beats not running.
            return open(os.devnull, "a", encoding="utf-8")


# What no line of ours shows is not found out: half of what a line costs, and at INFO each connection
# is a line (the logging HOWTO of Python, "Optimization").
logging._srcfile = None
logging.logThreads = False
logging.logMultiprocessing = False

# Ours only: at DEBUG a library such as pyroute2 tells of every message.
_ours = logging.getLogger("tproxy")
_handler: _ReopenedFile | None = None


def to_file(name: str, level: int) -> None:
    """Send this process's log to /var/log/``name``, from ``level`` (as in ``logging``) up."""
    global _handler
    _handler = _ReopenedFile(DIRECTORY / name, encoding="utf-8", errors="backslashreplace")
    _handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    _ours.handlers[:] = [_handler]
    _ours.propagate = False
    set_level(level)


def for_command(level: int, *, debug: bool) -> None:
    """For commands: all from ``level`` up to the daemon's file, warnings to stderr, a line each."""
    to_file(DAEMON_LOG, logging.DEBUG if debug else level)
    _ours.addHandler(_stderr(debug=debug))


def for_preview(*, debug: bool) -> None:
    """For commands that change nothing, and so write no file."""
    _ours.handlers[:] = [_stderr(debug=debug)]
    _ours.propagate = False
    set_level(logging.DEBUG if debug else logging.WARNING)


def _stderr(*, debug: bool) -> logging.Handler:
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(logging.Formatter("tproxy: %(message)s"))
    stderr.setLevel(logging.DEBUG if debug else logging.WARNING)
    # An error ends the command, which then says it: operators get one line, not two.
    stderr.addFilter(lambda record: record.levelno < logging.ERROR)
    return stderr


def set_level(level: int) -> None:
    _ours.setLevel(level)


def level() -> int:
    return _ours.level


def reopen() -> None:
    """Go on in a fresh file, after a rotation moved the old one away."""
    if _handler is not None:
        _handler.reopen()


def warn(line: str) -> None:
    """A warning that comes ready-made from pure code."""
    _ours.warning("%s", line)

"""``logging`` for all but relays: to which files lines go, and what operators see of them."""

from __future__ import annotations

import logging
import sys

from tproxy.log.file import LogFile

DAEMON_LOG = "one_tproxy.log"

_FORMATTER = logging.Formatter(
    "%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
)


class _Handler(logging.Handler):
    """Not logging.FileHandler, which gives up where there is no file to be had."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.file = LogFile(name)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.file.write(self.format(record))
        except Exception:
            self.handleError(record)  # a line that is written wrongly in our code: not the caller's end


# What no line of ours shows is not found out: half of what a line costs, and at INFO each connection
# is a line (the logging HOWTO of Python, "Optimization").
logging._srcfile = None
logging.logThreads = False
logging.logMultiprocessing = False

# Ours only: at DEBUG a library such as pyroute2 tells of every message.
_ours = logging.getLogger("tproxy")
_handler: _Handler | None = None


def to_file(name: str, level: int) -> None:
    """Send this process's log to /var/log/``name``, from ``level`` (as in ``logging``) up."""
    global _handler
    _handler = _Handler(name)
    _handler.setFormatter(_FORMATTER)
    _ours.handlers[:] = [_handler]
    _ours.propagate = False
    set_level(level)


def for_command(level: int, *, debug: bool) -> None:
    """For commands: all from ``level`` up to the daemon's file, warnings to stderr, a line each."""
    logging.raiseExceptions = debug  # handleError's traceback; a daemon's goes to the journal, or nowhere
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
        _handler.file.reopen()


def warn(line: str) -> None:
    """A warning that comes ready-made from pure code."""
    _ours.warning("%s", line)

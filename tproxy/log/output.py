"""Sets ``logging`` up for all processes but relays: which file lines go to, and which lines operators see."""

from __future__ import annotations

import logging
import sys

from tproxy.log.file import LogFile

DAEMON_LOG = "one_tproxy.log"

_FORMATTER = logging.Formatter(
    "%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
)


class _Handler(logging.Handler):
    """Writes to a LogFile. logging.FileHandler raises where it cannot open the file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.file = LogFile(name)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.file.write(self.format(record))
        except Exception:
            self.handleError(record)  # a log call with wrong arguments must not end its caller


# Do not look up the caller, thread and process of a line, which our format does not show. That halves the
# cost of a line, and at INFO each connection logs one (Python's logging HOWTO, "Optimization").
logging._srcfile = None
logging.logThreads = False
logging.logMultiprocessing = False

# Only our own loggers: at DEBUG a library such as pyroute2 logs every message.
_ours = logging.getLogger("tproxy")
_handler: _Handler | None = None


def to_file(name: str, level: int) -> None:
    """Send this process's log to /var/log/``name``, from ``level`` (a level of ``logging``) up."""
    global _handler
    if _handler is not None:
        _handler.file.close()
    _handler = _Handler(name)
    _handler.setFormatter(_FORMATTER)
    _ours.handlers[:] = [_handler]
    _ours.propagate = False
    set_level(level)


def for_command(level: int, *, debug: bool) -> None:
    """Set up a command: lines from ``level`` up go to the daemon's file, and warnings also to stderr."""
    logging.raiseExceptions = debug  # handleError prints a traceback; a command shows it only with --debug
    to_file(DAEMON_LOG, logging.DEBUG if debug else level)
    _ours.addHandler(_stderr(debug=debug))


def for_preview(*, debug: bool) -> None:
    """Set up a command that changes nothing: it writes no file, and warnings go to stderr."""
    _ours.handlers[:] = [_stderr(debug=debug)]
    _ours.propagate = False
    set_level(logging.DEBUG if debug else logging.WARNING)


def _stderr(*, debug: bool) -> logging.Handler:
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(logging.Formatter("tproxy: %(message)s"))
    stderr.setLevel(logging.DEBUG if debug else logging.WARNING)
    # An error ends the command, which then prints it: operators get one line, not two.
    stderr.addFilter(lambda record: record.levelno < logging.ERROR)
    return stderr


def set_level(level: int) -> None:
    """Log lines from ``level`` up."""
    _ours.setLevel(level)


def level() -> int:
    """Return the level from which lines are logged."""
    return _ours.level


def reopen() -> None:
    """Continue in a new file, after a rotation has moved the old one away."""
    if _handler is not None:
        _handler.file.reopen()


def warn(line: str) -> None:
    """Log a warning that pure code returned as text."""
    _ours.warning("%s", line)

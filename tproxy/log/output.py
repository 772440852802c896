"""Sets ``logging`` up for all processes but relays: which file lines go to, and which lines operators see."""

from __future__ import annotations

import logging
import os
import socket
import sys

from tproxy.log import journal, lines
from tproxy.log.file import LogFile
from tproxy.log.lazy import JSON

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
            text = self.format(record)  # it formats the exception too
            if _json:
                text = lines.as_json(
                    record.created, os.getpid(), record.levelno, _message(record), _fields(record)
                )
            self.file.write(text)
        except Exception:
            self.handleError(record)  # a log call with wrong arguments must not end its caller


class _Journal(logging.Handler):
    """Writes to systemd's journal."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._socket = sock

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = lines.as_entry(record.levelno, _message(record), _fields(record))
            journal.send(self._socket, entry)
        except Exception:
            self.handleError(record)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += f"\n{logging.Formatter().formatException(record.exc_info)}"
    return text


def _fields(record: logging.LogRecord) -> dict[str, object]:
    words = record.args if isinstance(record.args, tuple) else ()
    return lines.fields_in(str(record.msg), words)


# Do not look up the caller, thread and process of a line, which our format does not show. That halves the
# cost of a line, and at INFO each connection logs one (Python's logging HOWTO, "Optimization").
logging._srcfile = None
logging.logThreads = False
logging.logMultiprocessing = False

# Only our own loggers: at DEBUG a library such as pyroute2 logs every message.
_ours = logging.getLogger("tproxy")
_handler: _Handler | None = None
_json = False


def to_file(name: str, style: int) -> None:
    """Send this process's log to /var/log/``name``, in this style (``file``)."""
    global _handler
    if _handler is not None:
        _handler.file.close()
    _handler = _Handler(name)
    _handler.setFormatter(_FORMATTER)
    _ours.handlers[:] = [_handler]
    _ours.propagate = False
    set_level(style)


def to_journal() -> None:
    """Send this process's log to systemd's journal too, if it is a part of a service."""
    sock = journal.connect()
    if sock is not None:
        _ours.addHandler(_Journal(sock))


def for_command(style: int, *, debug: bool) -> None:
    """Set up a command: lines go to the daemon's file in this style, and warnings also to stderr."""
    logging.raiseExceptions = debug  # handleError prints a traceback; a command shows it only with --debug
    to_file(DAEMON_LOG, logging.DEBUG | (style & JSON) if debug else style)
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


def set_level(style: int) -> None:
    """Log lines from this level up, and in this format."""
    global _json
    _json = bool(style & JSON)
    _ours.setLevel(style & ~JSON)


def level() -> int:
    """Return the style in which lines are logged."""
    return _ours.level | (JSON if _json else 0)


def reopen() -> None:
    """Continue in a new file, after a rotation has moved the old one away."""
    if _handler is not None:
        _handler.file.reopen()


def warn(line: str) -> None:
    """Log a warning that pure code returned as text."""
    _ours.warning("%s", line)

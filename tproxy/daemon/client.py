"""Requests to the running daemon: one JSON line there, one JSON document back (``server`` is its side).

The socket lies in the run directory, which only root can enter. A hook asks at every VM start, so what
only a daemon that has to be started needs is in ``launcher``.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

from tproxy.errors import NotRunning, ProcessError
from tproxy.model import Settings
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock
from tproxy.typed import Any

SOCKET = "control.sock"

# Seconds. A daemon that does not answer in this time is stuck; a busy one with hundreds of bridges is not.
ANSWER_TIMEOUT = 60.0
PING_TIMEOUT = 5.0

Json = dict[str, Any]


def ask(request: Json, timeout: float) -> Json:
    """Send one request and return the answer.

    ``timeout`` is in seconds. Raises NotRunning when no daemon listens, and ProcessError when it does not
    answer in time or answers with an error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, f"{run_directory.directory()}/{SOCKET}", timeout)
            sock.sendall(json.dumps(request).encode() + b"\n")
            data = b"".join(iter(lambda: sock.recv(256 * 1024), b""))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning("the daemon is not running") from None
        except TimeoutError:
            raise ProcessError(f"the daemon did not answer within {timeout:g} s") from None
        except OSError as error:
            raise ProcessError(f"the daemon went away: {error.strerror}") from None
    try:
        answer: Json = json.loads(data)
    except ValueError:  # nothing, or only a part of it
        raise ProcessError("the daemon went away without an answer") from None
    if "error" in answer:
        raise ProcessError(answer["error"])
    return answer


def ping() -> Json | None:
    """Return the daemon's short answer (``stays``, ``watch``); None when none answers."""
    try:
        return ask({"op": "ping"}, PING_TIMEOUT)
    except ProcessError:
        return None


def daemon_answers() -> bool:
    return ping() is not None


def status() -> Json | None:
    """Return the daemon's full status; None when none runs. Raises ProcessError when that is unknown."""
    try:
        return ask({"op": "status"}, PING_TIMEOUT)
    except NotRunning:
        return None


def ensure_daemon(settings: Settings, lock: Lock) -> None:
    """Start a daemon with these settings unless one answers."""
    if not daemon_answers():
        from tproxy.daemon import launcher
        from tproxy.process.table import find, terminate

        terminate(list(find().daemons))  # one that does not answer is of no use
        launcher.launch(settings, lock, replace=False)


def apply(bridges: list[str] | None, settings: Settings, *, reopen_logs: bool = False) -> list[str]:
    """Make the maps of these bridges, or of all, take effect; return one line for each problem.

    Afterwards every port listens or is named in a line. With no map left the daemon is gone, unless it
    keeps a watcher.
    """
    request: Json = {"op": "apply", "reopen_logs": reopen_logs}
    if bridges is not None:
        request["bridges"] = bridges
    if settings.log_level is not None:
        request["log_level"] = settings.log_level
    if settings.watch_file is not None:
        request["watch"] = settings.watch_file
    answer = ask(request, ANSWER_TIMEOUT)
    if answer["ending"]:
        from tproxy.process.table import find, terminate

        terminate(find().all)
    problems: list[str] = answer["problems"]
    return problems


def leave_word(bridge: str) -> None:
    """Queue a request for a daemon that hangs: when it goes on, it looks at the bridge's map."""
    with suppress(ProcessError):  # no daemon runs, or it does not answer at once, as expected
        ask({"op": "apply", "bridges": [bridge]}, 0)


def _connect(sock: socket.socket, path: str, timeout: float) -> None:
    """Connect; wait while the daemon's backlog is full (listen(2)), since it is busy and not dead."""
    end = time.monotonic() + timeout
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.01)

"""Requests to the running daemon: the client sends one JSON line, the daemon answers with one JSON document.

``server`` is the daemon's side. The socket is in the run directory, which only root can enter. A hook sends a
request at every start of a VM, so this module imports little: what starts a daemon is in ``launcher``.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from tproxy.errors import DaemonEnded, NotRunning, ProcessError
from tproxy.model import Settings
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock
from tproxy.typed import Any

SOCKET = "control.sock"

# Seconds. A daemon that does not answer in this time is stuck; a busy one with hundreds of bridges is not.
ANSWER_TIMEOUT = 60.0
PING_TIMEOUT = 5.0

# The format of the daemon's answer to the question for metrics (``figures``).
FIGURES = 2

# The format of its answer to a question to the workers (``asking``).
ANSWERS = 1

Json = dict[str, Any]


def ask(request: Json, timeout: float, sent: Callable[[], None] | None = None) -> Json:
    """Send one request and return the answer. ``timeout`` is in seconds.

    A daemon whose socket somebody removed makes it again first. ``sent`` is called when the request has been
    sent: the daemon handles later requests after this one. Raises NotRunning when no daemon listens,
    DaemonEnded when it ends before it has answered, and ProcessError when it does not answer in time or
    answers with an error.
    """
    try:
        return _ask(request, timeout, sent)
    except NotRunning:
        from tproxy.daemon import lost_socket

        if not lost_socket.bring_back(SOCKET):
            raise
    return _ask(request, timeout, sent)


def _ask(request: Json, timeout: float, sent: Callable[[], None] | None) -> Json:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, f"{run_directory.directory()}/{SOCKET}", timeout)
            sock.sendall(json.dumps(request).encode() + b"\n")
            if sent is not None:
                sent()
            data = b"".join(iter(lambda: sock.recv(256 * 1024), b""))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning("the daemon is not running") from None
        except TimeoutError:
            raise ProcessError(f"the daemon did not answer within {timeout:g} s") from None
        except OSError as error:
            raise DaemonEnded(f"the daemon ended before it answered: {error.strerror}") from None
    try:
        answer: Json = json.loads(data)
    except ValueError:  # nothing, or only a part of it
        raise DaemonEnded("the daemon ended before it answered") from None
    if "error" in answer:
        raise ProcessError(answer["error"])
    return answer


def ping() -> Json | None:
    """Return whether the daemon ``stays`` without maps, and its ``watch`` file; None when none answers."""
    try:
        return ask({"op": "ping"}, PING_TIMEOUT)
    except ProcessError:
        return None


def daemon_answers() -> bool:
    return ping() is not None


def status() -> Json | None:
    """Return the daemon's full status; None when none runs. Raises ProcessError when one does not answer."""
    try:
        return ask({"op": "status"}, PING_TIMEOUT)
    except NotRunning:
        return None


def ensure_daemon(settings: Settings, lock: Lock) -> None:
    """Start a daemon with these settings unless one answers. The caller holds the host's lock."""
    if not daemon_answers():
        from tproxy.daemon import launcher
        from tproxy.process.table import find, terminate

        terminate(list(find().daemons))  # a daemon that does not answer serves nobody
        launcher.launch(settings, lock, replace=False)


def apply(
    bridges: list[str] | None,
    settings: Settings,
    *,
    reopen_logs: bool = False,
    lock: Lock | None = None,
) -> list[str]:
    """Make the maps of these bridges, or of all (None), take effect; return one line for each problem.

    When this returns, every service port listens or is named in a line. If no map is left, all processes have
    ended; but a daemon stays that keeps a watcher or is a service. With ``lock``, the host's lock is released
    as soon as the daemon has been told. Raises ProcessError as ``ask`` does.
    """
    request: Json = {"op": "apply", "reopen_logs": reopen_logs}
    if bridges is not None:
        request["bridges"] = bridges
    if settings.log_level is not None:
        request["log_level"] = settings.log_level
    if settings.watch_file is not None:
        request["watch"] = settings.watch_file
    if settings.workers is not None:
        request["workers"] = settings.workers
    if settings.max_connections is not None:
        request["max_connections"] = settings.max_connections
    if settings.hypervisor_name is not None:
        request["hypervisor_name"] = settings.hypervisor_name
    answer = ask(request, ANSWER_TIMEOUT, lock.release if lock is not None else None)
    if answer["ending"]:
        _end_all(lock)
    problems: list[str] = answer["problems"]
    return problems


def _end_all(lock: Lock | None) -> None:
    """End all processes, because no map is left."""
    from tproxy.process.table import end_serving

    if lock is not None:
        from tproxy.bridge import nftables

        lock.take()
        if nftables.read_maps():
            return  # another hook has brought a bridge up meanwhile, which needs them
    end_serving()


def queue_apply(bridge: str) -> None:
    """Queue a request for a daemon that hangs: when it runs again, it reads the bridge's map."""
    with suppress(ProcessError):  # no daemon runs; or, as expected, it does not answer at once
        ask({"op": "apply", "bridges": [bridge]}, 0)


def count_repair(bridge: str, *, failed: bool) -> None:
    """Have the daemon count a repair, for metrics. Nothing is waited for."""
    with suppress(ProcessError):  # as in queue_apply
        ask({"op": "repair", "bridge": bridge, "failed": failed}, 0)


def _connect(sock: socket.socket, path: str, timeout: float) -> None:
    """Connect. While the daemon's backlog is full (listen(2)), wait: it is busy, not dead."""
    end = time.monotonic() + timeout
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.01)

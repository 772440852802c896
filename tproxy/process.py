"""Our processes: start them, replace them, end them, have all of them follow the maps."""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from tproxy import control, foreground, instance, nft, serving
from tproxy.errors import NotRunning, ProcessError
from tproxy.logger import logger
from tproxy.running import find, send, terminate

log = logger(__name__)

# Seconds.
DRAIN_TIMEOUT = 5.0
RETURN_TIMEOUT = 30.0


def replace_daemon(log_level: int | None, watch: str | None) -> None:
    """Have a new daemon; the old one finishes its connections. The caller holds the lock."""
    if _retire_daemon():
        _wait_for_daemon()
    else:
        serving.launch(log_level, watch, replace=True)


def become_daemon(log_level: int | None, watch: str | None) -> NoReturn:
    """Turn this process into the daemon, which stays when there is nothing to do. See ``foreground``.

    The one that runs finishes its connections. A child makes the maps take effect once commands are
    taken; the lock, which the caller holds, is the child's until then.
    """
    if (serving.ping() or {}).get("stays"):
        raise ProcessError("the daemon runs as a service already: see tproxy restart")
    nft.read_maps()  # raises, and nothing has changed, where they cannot be read
    send(signal.SIGUSR2, find().watchers)  # they replace themselves
    _retire_daemon()
    reader, writer = os.pipe()
    daemon = os.getpid()
    if os.fork() == 0:
        os.close(writer)
        try:
            serving.expect_ready(reader)
            for problem in _apply_all(log_level, watch, reopen_logs=False):
                log.warning("%s", problem)
        except Exception as error:  # whatever it was: the manager is to learn that the start failed
            log.warning("the maps do not take effect: %s", error)
            os.kill(daemon, signal.SIGTERM)
        finally:
            os._exit(0)
    foreground.execute(*serving.arguments(log_level, watch), "--ready", str(writer), keep=writer)


def start(log_level: int | None, watch: str | None = None, *, reopen_logs: bool = False) -> list[str]:
    """Bring all processes in line with the maps; returns what could not be, a line each.

    ``watch`` is the configuration file that wants the daemon to keep a watcher; empty when it wants
    none, None when that is unknown. Without, and with no map at all, everything ends; a watcher goes on.
    The caller holds the host's lock, as for all that follow.
    """
    if reopen_logs:
        send(signal.SIGHUP, find().watchers)
    if not _needed(watch):
        _end_serving()
        return []
    serving.ensure_daemon(log_level, watch)
    return _apply_all(log_level, watch, reopen_logs=reopen_logs)


def restart(log_level: int | None, watch: str | None = None) -> list[str]:
    """Replace all processes; the old daemon goes on with its open connections until they end."""
    send(signal.SIGUSR2, find().watchers)  # they replace themselves
    if not _needed(watch):
        _end_serving()
        return []
    replace_daemon(log_level, watch)
    return _apply_all(log_level, watch, reopen_logs=False)


def watched_file() -> str | None:
    """The file that the daemon keeps a watcher for; empty for none, None when no daemon answers."""
    return (serving.ping() or {}).get("watch")


def _needed(watch: str | None) -> bool:
    """Whether there is anything to run for; a daemon that is a service stays in any case."""
    return bool(watch or nft.read_maps() or (serving.ping() or {}).get("stays"))


def _retire_daemon() -> bool:
    """Have the daemon that runs finish its connections, and take no more.

    Returns whether another one comes in its place by itself.
    """
    try:
        return bool(control.ask(instance.directory(), {"op": "drain"}, DRAIN_TIMEOUT).get("renewed"))
    except ProcessError:
        terminate(list(find().daemons))
        return False


def stop() -> None:
    """End all of the instance's processes; returns when they are gone."""
    # Watchers first: they would take the end of the daemon for an accident.
    terminate([*find().watchers])
    _end_serving()
    terminate([*find().watchers])  # one that the daemon started meanwhile


def _end_serving() -> None:
    running = find()
    # The daemon first: it would take the end of a relay for an accident.
    terminate([*running.daemons, *running.auxiliary])
    terminate(find().all)


def ask_status() -> control.Json | None:
    """What the daemon tells of itself; None when it does not run, ProcessError when that is unknown."""
    try:
        return control.ask(instance.directory(), {"op": "status"}, serving.PING_TIMEOUT)
    except NotRunning:
        return None


def _apply_all(log_level: int | None, watch: str | None, *, reopen_logs: bool) -> list[str]:
    problems = serving.apply(None, log_level, watch, reopen_logs=reopen_logs)
    # Left over from a daemon that crashed, for a bridge whose map has gone since.
    status = ask_status()
    if status is not None:
        known = {each["relay"] for each in status["bridges"].values()}
        terminate([process for _, process in find().relays if process.pid not in known])
    return problems


def _wait_for_daemon() -> None:
    """Return when a daemon takes commands that starts by itself."""
    deadline = time.monotonic() + RETURN_TIMEOUT
    while not serving.daemon_answers():
        if time.monotonic() > deadline:
            raise ProcessError(f"the daemon did not come back within {RETURN_TIMEOUT:g} s")
        time.sleep(0.02)

"""Our processes: start them, replace them, end them, have all of them follow the maps."""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from tproxy.bridge import nftables
from tproxy.config import reader
from tproxy.config.services import Config
from tproxy.daemon import client, launcher
from tproxy.errors import ProcessError, TproxyError
from tproxy.log.lazy import logger
from tproxy.model import Settings
from tproxy.process import service_manager
from tproxy.process.run_directory import Lock
from tproxy.process.table import find, send, terminate

log = logger(__name__)

# Seconds.
DRAIN_TIMEOUT = 5.0
RETURN_TIMEOUT = 30.0


def replace_daemon(settings: Settings, lock: Lock) -> None:
    """Have a new daemon; the old one finishes its connections."""
    if _retire_daemon():
        _wait_for_daemon()
    else:
        launcher.launch(settings, lock, replace=True)


def become_daemon(settings: Settings) -> NoReturn:
    """Turn this process into the daemon, which stays when there is nothing to do. See ``foreground``.

    The one that runs finishes its connections. A child makes the maps take effect once commands are
    taken; the lock, which the caller holds, is the child's until then.
    """
    if (client.ping() or {}).get("stays"):
        raise ProcessError("the daemon runs as a service already: see tproxy restart")
    nftables.read_maps()  # raises, and nothing has changed, where they cannot be read
    send(signal.SIGUSR2, find().watchers)  # they replace themselves
    _retire_daemon()
    reader, writer = os.pipe()
    daemon = os.getpid()
    if os.fork() == 0:
        os.close(writer)
        try:
            launcher.expect_ready(reader)
            for problem in _apply_all(settings, reopen_logs=False):
                log.warning("%s", problem)
        except Exception as error:  # whatever it was: the manager is to learn that the start failed
            log.warning("the maps do not take effect: %s", error)
            os.kill(daemon, signal.SIGTERM)
        finally:
            os._exit(0)
    service_manager.execute(*launcher.arguments(settings), "--ready", str(writer), keep=writer)


def start(settings: Settings, lock: Lock, *, reopen_logs: bool = False) -> list[str]:
    """Bring all processes in line with the maps; returns what could not be, a line each.

    ``watch`` is the configuration file that wants the daemon to keep a watcher; empty when it wants
    none, None when that is unknown. Without, and with no map at all, everything ends; a watcher goes on.
    The caller holds the host's lock, as for all that follow.
    """
    if reopen_logs:
        send(signal.SIGHUP, find().watchers)
    if not _needed(settings.watch_file):
        _end_serving()
        return []
    client.ensure_daemon(settings, lock)
    return _apply_all(settings, reopen_logs=reopen_logs)


def restart(settings: Settings, lock: Lock) -> list[str]:
    """Replace all processes; the old daemon goes on with its open connections until they end."""
    send(signal.SIGUSR2, find().watchers)  # they replace themselves
    if not _needed(settings.watch_file):
        _end_serving()
        return []
    replace_daemon(settings, lock)
    return _apply_all(settings, reopen_logs=False)


def settings_from(read: Config | None) -> Settings:
    """The settings to apply when this was read from the usual place; None when nothing could be.

    The file that wants a watcher can be another one: hooks may be given a file of their own.
    """
    return Settings(read.log_level if read is not None else None, _watch_file(read))


def _watch_file(read: Config | None) -> str | None:
    if read is not None and read.watch_file:
        return read.watch_file
    other: str | None = (client.ping() or {}).get("watch")  # "" for no watcher, None when no daemon answers
    try:
        return reader.load(other).watch_file if other else other
    except TproxyError:
        # A file that is broken keeps its last word. One that is gone does so unless there is another.
        return other if read is None or (other and os.path.lexists(other)) else ""


def _needed(watch_file: str | None) -> bool:
    """Whether there is anything to run for; a daemon that is a service stays in any case."""
    return bool(watch_file or nftables.read_maps() or (client.ping() or {}).get("stays"))


def _retire_daemon() -> bool:
    """Have the daemon that runs finish its connections, and take no more.

    Returns whether another one comes in its place by itself.
    """
    try:
        return bool(client.ask({"op": "drain"}, DRAIN_TIMEOUT).get("renewed"))
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


def _apply_all(settings: Settings, *, reopen_logs: bool) -> list[str]:
    problems = client.apply(None, settings, reopen_logs=reopen_logs)
    # Left over from a daemon that crashed, for a bridge whose map has gone since.
    status = client.status()
    if status is not None:
        known = {each["relay"] for each in status["bridges"].values()}
        terminate([process for _, process in find().relays if process.pid not in known])
    return problems


def _wait_for_daemon() -> None:
    """Return when a daemon takes commands that starts by itself."""
    deadline = time.monotonic() + RETURN_TIMEOUT
    while not client.daemon_answers():
        if time.monotonic() > deadline:
            raise ProcessError(f"the daemon did not come back within {RETURN_TIMEOUT:g} s")
        time.sleep(0.02)

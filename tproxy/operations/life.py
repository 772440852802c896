"""The life cycle of our processes: starts, replaces and ends them, and makes them follow the maps.

All functions that take a lock expect the caller to hold the host's lock.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from tproxy.bridge import nftables, wall
from tproxy.config import joined
from tproxy.config.services import Config
from tproxy.daemon import client, host_mounts, launcher
from tproxy.errors import NftError, ProcessError, TproxyError
from tproxy.kernel import limits, netns
from tproxy.log.lazy import logger
from tproxy.model import Settings
from tproxy.names import BridgeNames
from tproxy.operations import lost_table, rotation
from tproxy.process import service_manager
from tproxy.process.run_directory import Lock
from tproxy.process.table import end_serving, find, send_signal, terminate

log = logger(__name__)

# Seconds. A healthy daemon answers a drain request at once; one that does not answer is ended.
DRAIN_TIMEOUT = 5.0
# Seconds until a daemon that replaces itself takes commands again.
RETURN_TIMEOUT = 30.0


def replace_daemon(settings: Settings, lock: Lock) -> None:
    """Start a new daemon in place of the running one, which only finishes its open connections."""
    if _retire_daemon():
        _wait_for_daemon()
    else:
        launcher.launch(settings, lock, replace=True)


def become_daemon(settings: Settings) -> NoReturn:
    """Turn this process into a daemon that stays without maps, for a service manager (``service_manager``).

    A daemon that is already running only finishes its open connections. A child process applies the maps as
    soon as the new daemon takes commands. The child inherits the lock, which the caller holds, and keeps it
    until then. Raises ProcessError when the running daemon is a service, and NftError.

    When the nftables table of all maps is gone, the running daemon is the only one that knows them. So they
    are restored first.
    """
    if (client.ping() or {}).get("stays"):
        raise ProcessError("the daemon runs as a service already: see tproxy restart")
    limits.require_descriptors()
    host_mounts.require_sight()
    nftables.read_maps()  # if they cannot be read, this raises before anything has changed
    lost_table.restore()
    send_signal(signal.SIGUSR2, find().watchers)  # they replace themselves
    _retire_daemon()
    reader, writer = os.pipe()
    daemon = os.getpid()
    if os.fork() == 0:
        os.close(writer)
        try:
            launcher.expect_ready(reader)
            for problem in _apply_all(settings, reopen_logs=False):
                log.warning("%s", problem)
        except Exception as error:  # of any kind: the service manager has to learn that the start failed
            log.warning("the maps cannot be applied: %s", error)
            os.kill(daemon, signal.SIGTERM)
        finally:
            os._exit(0)
    service_manager.execute_daemon(*launcher.arguments(settings), "--ready", str(writer), keep=writer)


def start(settings: Settings, lock: Lock, *, reopen_logs: bool = False) -> list[str]:
    """Bring all processes in line with the maps; return a line for each problem.

    ``settings.watch_file`` is the configuration file that wants the daemon to keep a watcher. With neither
    such a file nor a map, daemon and relays end; a watcher that an operator started goes on. Raises NftError,
    having changed nothing, when the table of all maps is gone although bridges are still served. Logs are
    reopened in any case: older versions rotated them with `tproxy reload`.
    """
    try:
        lost_table.require_table()
    except NftError:
        if reopen_logs:
            rotation.order()
        raise
    if reopen_logs:
        send_signal(signal.SIGHUP, find().watchers)
    if not _needed(settings.watch_file):
        end_serving()
        wall.remove_all()
        return []
    client.ensure_daemon(settings, lock)
    return _apply_all(settings, reopen_logs=reopen_logs)


def restart(settings: Settings, lock: Lock) -> list[str]:
    """Replace all processes; return a line for each problem. The old daemon finishes its open connections.

    Raises NftError as ``start`` does.
    """
    lost_table.require_table()
    limits.require_descriptors()  # before the old daemon ends
    host_mounts.require_sight()
    send_signal(signal.SIGUSR2, find().watchers)  # they replace themselves
    if not _needed(settings.watch_file):
        end_serving()
        wall.remove_all()
        return []
    replace_daemon(settings, lock)
    return _apply_all(settings, reopen_logs=False)


def settings_from(read: Config | None) -> Settings:
    """Return the settings to apply.

    ``read`` is the configuration from the usual place, None when there is none, or it cannot be used. Hooks
    may be given a file of their own, so the file that wants a watcher can be another one.
    """
    known = read.settings if read is not None else Settings()
    return known._replace(watch_file=_watch_file(read))


def _watch_file(read: Config | None) -> str | None:
    """The file that wants a watcher: ``read``, or the one for which the daemon keeps a watcher now."""
    if read is not None and read.watch_file:
        return read.watch_file
    other: str | None = (client.ping() or {}).get("watch")  # "" for no watcher, None when no daemon answers
    try:
        return joined.load(other).watch_file if other else other
    except TproxyError:
        # A broken file changes nothing. A file that is gone changes nothing unless there is another one.
        return other if read is None or (other and os.path.lexists(other)) else ""


def _needed(watch_file: str | None) -> bool:
    """Whether a daemon is needed. One that runs as a service stays in any case."""
    return bool(watch_file or nftables.read_maps() or (client.ping() or {}).get("stays"))


def _retire_daemon() -> bool:
    """Make the running daemon finish its open connections and accept no more.

    Returns whether it replaces itself, as a daemon does that runs as a service.
    """
    try:
        return bool(client.ask({"op": "drain"}, DRAIN_TIMEOUT).get("renewed"))
    except ProcessError:
        terminate(list(find().daemons))
        return False


def stop() -> None:
    """End all processes of this network namespace's tproxy. They are gone when this returns."""
    # Watchers first: one that still runs would start the daemon again.
    terminate([*find().watchers])
    end_serving()
    terminate([*find().watchers])  # one that the daemon started in the meantime


def _apply_all(settings: Settings, *, reopen_logs: bool) -> list[str]:
    """Make all maps take effect; return a line for each problem."""
    problems = client.apply(None, settings, reopen_logs=reopen_logs)
    status = client.status()
    if status is None:
        return problems
    running = find()
    # The daemon before this one has nothing more to do, but may still be ending.
    others = [daemon for daemon in running.daemons if daemon.pid != status["pid"]]
    terminate(others if len(others) < len(running.daemons) else [])
    # A daemon that crashed may have left relays of bridges whose maps are gone by now. Without the table they
    # serve guests still, or the daemon that finishes its connections does through them.
    if not lost_table.bereft():
        known = {bridge: each["relay"] for bridge, each in status["bridges"].items()}
        terminate([relay for bridge, relay in running.relays if _is_left_over(bridge, relay.pid, known)])
    return problems


def _is_left_over(bridge: str, pid: int, known: dict[str, int | None]) -> bool:
    """Whether the daemon has no use for a relay; ``known`` are the relays that it has, by bridge."""
    if bridge not in known or known[bridge] is not None:
        return known.get(bridge) != pid
    # The process that was to find or replace it has died, and another one is coming.
    try:
        return netns.of_process(pid) != netns.identify(BridgeNames(bridge).namespace)
    except OSError:
        return False  # it has ended


def _wait_for_daemon() -> None:
    """Wait until the daemon that replaces the old one takes commands; raise ProcessError if it does not."""
    deadline = time.monotonic() + RETURN_TIMEOUT
    while not client.daemon_answers():
        if time.monotonic() > deadline:
            raise ProcessError(f"the new daemon takes no commands after {RETURN_TIMEOUT:g} s")
        time.sleep(0.02)

"""Finds the processes of this instance in the process table, signals them, and waits for their end."""

import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from tproxy.errors import ProcessError
from tproxy.log.lazy import logger
from tproxy.names import DAEMON_TITLE
from tproxy.process import run_directory

if TYPE_CHECKING:
    from psutil import Process
else:
    Process = object

log = logger(__name__)

RELAY_PREFIX = DAEMON_TITLE + "_"
# Processes of the instance that are neither daemon nor relay: the spawner, workers, a watcher.
AUXILIARY_PREFIX = "tproxy-"
WATCHER_TITLE = AUXILIARY_PREFIX + "watch"

END_TIMEOUT = 5.0  # seconds
# Seconds between two looks at processes that are ending, which takes them some milliseconds.
_POLL_INTERVAL = 0.002


class Running(NamedTuple):
    """The running processes of the instance. ``relays`` holds each relay with its bridge."""

    daemons: tuple[Process, ...] = ()
    relays: tuple[tuple[str, Process], ...] = ()
    auxiliary: tuple[Process, ...] = ()
    watchers: tuple[Process, ...] = ()

    @property
    def lines(self) -> list[tuple[str, int]]:
        """Titles and pids of daemon and relays, the daemon first, as ``tproxy status`` prints them."""
        relays = sorted((f"{RELAY_PREFIX}{bridge}", each.pid) for bridge, each in self.relays)
        return [*((DAEMON_TITLE, each.pid) for each in self.daemons), *relays]


def find() -> Running:
    """Find the processes of this network namespace's instance by title and working directory.

    Any process can take such a title, but only root can work in the instance's directory, or in the empty one
    in it, which is the root directory of relays and workers.
    """
    import psutil

    home = run_directory.directory()
    homes = (home, f"{home}/{run_directory.EMPTY}")
    daemons, relays, auxiliary, watchers = [], [], [], []
    # Not psutil.process_iter: it caches what it found, and a watcher calls this for months. When a pid is
    # used again, process_iter returns the old process, which counts as ended and cannot be signalled.
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            title = " ".join(process.cmdline()).rstrip("\0 ")
            if not title.startswith((DAEMON_TITLE, AUXILIARY_PREFIX)) or process.cwd() not in homes:
                continue
        except psutil.Error:
            continue
        if title == DAEMON_TITLE:
            daemons.append(process)
        elif title.startswith(RELAY_PREFIX):
            relays.append((title.removeprefix(RELAY_PREFIX), process))
        elif title == WATCHER_TITLE:
            watchers.append(process)
        elif title.startswith(AUXILIARY_PREFIX):
            auxiliary.append(process)
    return Running(tuple(daemons), tuple(relays), tuple(auxiliary), tuple(watchers))


def send_signal(number: signal.Signals, processes: Iterable[Process]) -> None:
    """Send a signal to those processes that have not ended."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def terminate(processes: Sequence[Process]) -> None:
    """Ask processes to end, kill those that do not, and return when all have ended. Raises ProcessError."""
    if not processes:
        return
    send_signal(signal.SIGTERM, processes)
    alive = _left_after(END_TIMEOUT, processes)
    for process in alive:
        log.warning("process %d does not end, and is killed", process.pid)
    send_signal(signal.SIGKILL, alive)
    alive = _left_after(END_TIMEOUT, alive)
    if alive:
        raise ProcessError(f"process {alive[0].pid} cannot be ended")


def _left_after(seconds: float, processes: Sequence[Process]) -> list[Process]:
    """Wait at most so long; return the processes that have not ended.

    Not psutil.wait_procs (as of 7.2): it fails for a process that has ended while its session goes on, which
    is so for a daemon with relays. Kernels such as that of Debian 12 then return EINVAL from pidfd_open(2).
    """
    deadline = time.monotonic() + seconds
    while (left := list(filter(_runs, processes))) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
    return left


def _runs(process: Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_serving() -> None:
    """End all processes but watchers."""
    running = find()
    # The daemon first: it would start its relays and workers again.
    terminate(running.daemons)
    terminate([*running.auxiliary, *(relay for _, relay in running.relays)])
    running = find()  # what the daemon started in the meantime
    terminate([*running.daemons, *running.auxiliary, *(relay for _, relay in running.relays)])


def end_relay(bridge: str) -> None:
    """End the relay of a bridge, which no daemon keeps any more."""
    terminate([relay for name, relay in find().relays if name == bridge])

"""Our processes as the process table shows them: find them, signal them, see them end."""

import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from tproxy.errors import ProcessError
from tproxy.log.lazy import logger
from tproxy.model import DAEMON_TITLE
from tproxy.process import run_directory

if TYPE_CHECKING:
    from psutil import Process
else:
    Process = object

log = logger(__name__)

RELAY_PREFIX = DAEMON_TITLE + "_"
# Of the instance as well, though neither daemon nor relay: a spawner, a draining daemon.
AUXILIARY_PREFIX = "tproxy-"
WATCHER_TITLE = AUXILIARY_PREFIX + "watch"

END_TIMEOUT = 5.0  # seconds
# Between two looks; processes take some milliseconds to end.
_GLANCE = 0.002


class Running(NamedTuple):
    """The instance's processes as the process table shows them."""

    daemons: tuple[Process, ...] = ()
    relays: tuple[tuple[str, Process], ...] = ()
    auxiliary: tuple[Process, ...] = ()
    watchers: tuple[Process, ...] = ()

    @property
    def all(self) -> list[Process]:
        """All that serve connections; watchers come and go for other reasons."""
        return [*self.daemons, *(process for _, process in self.relays), *self.auxiliary]

    @property
    def lines(self) -> list[tuple[str, int]]:
        """Titles and pids, daemon first."""
        relays = sorted((f"{RELAY_PREFIX}{bridge}", each.pid) for bridge, each in self.relays)
        return [*((DAEMON_TITLE, each.pid) for each in self.daemons), *relays]


def find() -> Running:
    """Processes of this network namespace's instance, by title and working directory.

    A title anybody can take; to work in the instance's directory one must be root.
    """
    import psutil

    home = run_directory.directory()
    daemons, relays, auxiliary, watchers = [], [], [], []
    # Not psutil.process_iter: it keeps what it found earlier, and a watcher lives long. Of a number that
    # another process has got since, it gives the old one, which cannot be signalled, and counts as ended.
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            title = " ".join(process.cmdline()).rstrip("\0 ")
            if not title.startswith((DAEMON_TITLE, AUXILIARY_PREFIX)) or process.cwd() != home:
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


def send(number: signal.Signals, processes: Iterable[Process]) -> None:
    """Signal those that are still there."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def terminate(processes: Sequence[Process]) -> None:
    """Ask processes to end, kill those that do not, and return when all are gone."""
    if not processes:
        return
    send(signal.SIGTERM, processes)
    alive = _left_after(END_TIMEOUT, processes)
    for process in alive:
        log.warning("process %d does not end; killed", process.pid)
    send(signal.SIGKILL, alive)
    alive = _left_after(END_TIMEOUT, alive)
    if alive:
        raise ProcessError(f"process {alive[0].pid} cannot be ended")


def _left_after(seconds: float, processes: Sequence[Process]) -> list[Process]:
    """Those that have not ended in that time.

    Not psutil.wait_procs (as of 7.2): it fails with a process that has ended while its session goes on, as a
    daemon's does with its relays. Of that the kernels of Debian 12 and their like say EINVAL, pidfd_open(2).
    """
    deadline = time.monotonic() + seconds
    while (left := list(filter(_runs, processes))) and time.monotonic() < deadline:
        time.sleep(_GLANCE)
    return left


def _runs(process: Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_relay(bridge: str) -> None:
    """End a bridge's relay that no daemon looks after."""
    terminate([relay for name, relay in find().relays if name == bridge])

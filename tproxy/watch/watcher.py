"""The watcher process: bridges follow their guests without any hook, and what others break is repaired.

One process for each run directory, with a loop of its own. The watcher does nothing that a hook could not
do: it runs the same code under the same lock. So it may run beside hooks, and may be killed at any point. A
signal ends it at once, even while it waits for the lock that ``tproxy stop`` holds.
"""

from __future__ import annotations

import logging
import os
import signal
from importlib import import_module

from tproxy.bridge import nftables
from tproxy.config import joined
from tproxy.config.services import Config
from tproxy.daemon import client
from tproxy.daemon.watcher_keeper import take_place
from tproxy.errors import ProcessError, TproxyError
from tproxy.kernel import privileges
from tproxy.kernel.limits import raise_descriptor_limit
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents, RulesetEvents
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL, JSON
from tproxy.model import Settings
from tproxy.operations import life
from tproxy.process import level_file, run_directory, service_manager, table
from tproxy.process.title import set_title
from tproxy.watch.guests import GuestFollower
from tproxy.watch.lifeline import Lifeline
from tproxy.watch.names import NameFollower
from tproxy.watch.repair import SETTLE, TICK, UNSTEADY, Repairer

log = logging.getLogger(__name__)


class Watcher:
    """The parts of the watcher, joined.

    ``config`` is the configuration to begin with. ``kept_by`` is the pid of the daemon that started this
    process, None if no daemon did. ``loop`` is for tests, which give one with a clock of their own. Raises
    ProcessError when another watcher runs.
    """

    def __init__(self, config: Config, kept_by: int | None, *, debug: bool, loop: Loop | None = None) -> None:
        self._config = config
        self._kept_by = kept_by
        self._debug = debug
        self._file_problem = ""  # why the file could not be read again
        self._problems: list[str] = []  # of the last attempt to start the daemon
        os.chdir(run_directory.prepare())
        place = take_place(kept=kept_by is not None)
        if place is None:
            raise ProcessError("a watcher is running already")
        self._place = place
        self._loop = loop or Loop()
        self._repairer = Repairer(self._loop, self._settings)
        self._guests = GuestFollower(self._loop, config, self._settings, self._repairer.uplinks)
        self._names = NameFollower(self._loop, config, self._settings, self._guests.moved)
        self._lifeline = Lifeline(self._loop, self._daemon_ended)

    def run(self, lock: int | None) -> None:
        """Watch until a signal ends the process.

        ``lock`` is a descriptor that holds the host's lock; None when the lock was not taken for this
        process.
        """
        self._loop.on_signal(signal.SIGHUP, self._reread)
        self._loop.on_signal(signal.SIGUSR1, self._reopen)
        self._loop.on_signal(signal.SIGUSR2, self._replace)
        set_title(table.WATCHER_TITLE)
        self._set_level()  # only now: a signal that tells of a new one was sent to processes with this title
        service_manager.report_ready()  # not earlier: without their handlers, signals would end the process
        if lock is not None:
            os.close(lock)
        # Only now that other processes can find this one: `tproxy stop` ends the daemon, then looks for
        # watchers.
        if self._kept_by not in (None, os.getppid()):
            return
        import_module("pyroute2.netns")  # large; the first guest should not wait for it
        LinkEvents(self._loop, self._links_changed, self._look_at_all)
        RulesetEvents(self._loop, self._repairer.ruleset_changed, self._look_at_all)
        log.info("watching bridges, as %s says", self._config.path)
        self._look_at_all()
        self._tick()
        self._names.look()
        self._loop.run()

    def _settings(self) -> Settings:
        """Return the settings for a new daemon, which keeps a watcher if the daemon before did."""
        settings = self._config.settings
        return settings if self._kept_by is not None else settings._replace(watch_file=None)

    def _look_at_all(self) -> None:
        self._guests.look_at_all()
        self._repairer.doubt_all()

    def _links_changed(self, names: set[str], masters: set[str]) -> None:
        self._guests.look(names | masters)
        # The bridge, too: when our port is renamed, the kernel announces only the new name.
        self._repairer.links_changed(names | masters)

    def _tick(self) -> None:
        self._loop.call_later(TICK, self._tick)
        if not os.fstat(self._place).st_nlink:
            self._claim_again()
        self._repairer.check_namespaces()
        self._guests.look_for_gone()
        self._look_for_daemon()

    def _claim_again(self) -> None:
        """Lock a new file: somebody removed the run directory."""
        os.chdir(run_directory.prepare())
        place = take_place(kept=self._kept_by is not None)
        if place is None:
            log.warning("another watcher has taken the place of this one")
            self._loop.stop()
            return
        os.close(self._place)
        self._place = place

    def _daemon_ended(self) -> None:
        self._loop.call_later(SETTLE, self._look_for_daemon)  # a restart may be replacing it

    def _look_for_daemon(self) -> None:
        try:
            if self._lifeline.connected():
                self._problems = []
                return
            settings = self._settings()
            with run_directory.lock(run_directory.ALL_BRIDGES) as lock:
                if client.daemon_answers() or not (settings.watch_file or nftables.read_maps()):
                    return
                problems = life.start(settings, lock)
        except UNSTEADY as error:  # OSError: no descriptor or process is free now
            problems = [f"the daemon is gone and cannot be started: {error}"]
        else:
            log.warning("the daemon was gone; started again")
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = problems

    def _read(self) -> Config | None:
        try:
            read = joined.load(self._config.path)
        except TproxyError as error:
            if str(error) != self._file_problem:
                log.warning("%s; the version that was read last stays in force", error)
            self._file_problem = str(error)
            return None
        self._file_problem = ""
        return read

    def _reopen(self) -> None:
        output.reopen()
        self._set_level()

    def _set_level(self) -> None:
        """Take the level that the command line, an operator or the configuration file says, in this order."""
        style = self._config.log_style
        level = logging.DEBUG if self._debug else level_file.read()
        output.set_level(style if level is None else level | (style & JSON))

    def _reread(self) -> None:
        output.reopen()
        read = self._read()
        if read is None:
            return
        self._config = read
        self._set_level()
        for warning in read.warnings:
            output.warn(warning.at(read.path))
        if self._kept_by is not None and not read.watch:
            log.info("%s wants no watcher any more", read.path)
            self._loop.stop()
            return
        self._guests.configure(read)
        self._names.config = read

    def _replace(self) -> None:
        """Run the installed code in this process, with the same pid; not while the file cannot be read."""
        if self._read() is None:
            return
        arguments = ["--debug"] if self._debug else []
        arguments += ["watch", "--config", self._config.path]
        arguments += ["--kept-by", str(os.getppid())] if self._kept_by is not None else []
        # While the new code starts, no process can find this one or signal it. `tproxy stop` waits for the
        # lock.
        lock = run_directory.take_lock()
        if self._repairer.is_missing_maps():
            lock.close()
            self._loop.call_later(SETTLE, self._replace)
            return
        service_manager.execute_module("tproxy", *arguments, "--lock", str(lock.fileno()), keep=lock.fileno())


def run(
    path: str, kept_by: int | None, lock: int | None, *, debug: bool = False, loop: Loop | None = None
) -> None:
    """Be the watcher for the configuration file ``path``; for the other arguments see Watcher.

    Raises ConfigError when the file cannot be used, ProcessError when another watcher runs.
    """
    raise_descriptor_limit()  # each bridge takes about twenty (probe)
    unlimited = privileges.limit()
    output.for_command(DEFAULT_LEVEL, debug=debug)
    for line in unlimited:
        log.warning("a right that the watcher does not need could not be given up: %s", line)
    try:
        read = joined.load(os.path.abspath(path))
    except TproxyError as error:
        log.error("no watcher: %s", error)  # nobody reads what the child of a daemon writes to stderr
        raise
    output.for_command(read.log_style, debug=debug)
    output.to_journal()
    for warning in read.warnings:
        output.warn(warning.at(read.path))
    Watcher(read, kept_by, debug=debug, loop=loop).run(lock)

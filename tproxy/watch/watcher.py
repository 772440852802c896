"""The watcher: bridges follow their guests without any hook, and what strangers break is repaired.

One process for an instance, with a loop of its own. It does nothing that a hook could not do, by the
same code and under the same lock; so it may run beside hooks, and may be killed at any point. That is
also how it ends: by the signal, at once, even while it waits for the lock that ``tproxy stop`` holds.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from importlib import import_module

from tproxy.bridge import nftables
from tproxy.config import reader
from tproxy.config.services import Config
from tproxy.daemon import client
from tproxy.daemon.watcher_keeper import PLACE
from tproxy.errors import ProcessError, TproxyError
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import LinkEvents, RulesetEvents
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.model import Settings
from tproxy.operations import life
from tproxy.process import run_directory, service_manager, table
from tproxy.process.title import set_title
from tproxy.watch.guests import Attendant
from tproxy.watch.lifeline import Lifeline
from tproxy.watch.repair import SETTLE, TICK, UNSTEADY, Mender

log = logging.getLogger(__name__)


class Watcher:
    """``read`` is the configuration of now; ``kept_by`` the daemon that started this, if one did."""

    def __init__(self, read: Config, kept_by: int | None, *, debug: bool) -> None:
        self._config = read
        self._kept_by = kept_by
        self._debug = debug
        self._said = ""
        self._problems: list[str] = []  # with the daemon, when it was looked for last
        os.chdir(run_directory.prepare())
        self._place = run_directory.claim(PLACE)
        if self._place is None:
            raise ProcessError("a watcher is running already")
        self._loop = Loop()
        self._mender = Mender(self._loop, self._settings)
        self._attendant = Attendant(self._loop, read, self._settings, self._mender.uplinks)
        self._lifeline = Lifeline(self._loop, self._daemon_ended)

    def run(self, lock: int | None) -> None:
        """Watch until a signal ends the process. ``lock`` is the host's, if it was taken for us."""
        self._loop.on_signal(signal.SIGHUP, self._reread)
        self._loop.on_signal(signal.SIGUSR2, self._replace)
        set_title(table.WATCHER_TITLE)
        service_manager.ready()  # for signals; before, SIGHUP ended it
        if lock is not None:
            os.close(lock)
        # Now that it can be found, and not before: whoever ended the daemon may have looked already.
        if self._kept_by not in (None, os.getppid()):
            return
        import_module("pyroute2.netns")  # the first guest shall not wait for it
        LinkEvents(self._loop, self._links_touched, self._look_at_all)
        RulesetEvents(self._loop, self._mender.ruleset_touched, self._look_at_all)
        log.info("watching bridges, as %s says", self._config.path)
        self._look_at_all()
        self._tick()
        self._loop.run()

    def _settings(self) -> Settings:
        """For a daemon that is brought back: it keeps this watcher if the one before did."""
        return self._config.settings if self._kept_by is not None else Settings(self._config.log_level)

    def _look_at_all(self) -> None:
        self._attendant.look_at_all()
        self._mender.doubt_all()

    def _links_touched(self, names: set[str], masters: set[str]) -> None:
        self._attendant.look(names | masters)
        self._mender.links_touched(names | masters)  # of a port with a new name that is all

    def _tick(self) -> None:
        self._loop.call_later(TICK, self._tick)
        self._mender.look()
        self._attendant.look_for_gone()
        self._look_for_daemon()

    def _daemon_ended(self) -> None:
        self._loop.call_later(SETTLE, self._look_for_daemon)  # it may be replaced just now

    def _look_for_daemon(self) -> None:
        try:
            if self._lifeline.connected():
                self._problems = []
                return
            settings = self._settings()
            with run_directory.lock() as lock:
                if client.daemon_answers() or not (settings.watch_file or nftables.read_maps()):
                    return
                problems = life.start(settings, lock)
        except UNSTEADY as error:  # OSError: no descriptor or process is to be had now
            problems = [f"the daemon is gone and cannot be started: {error}"]
        else:
            log.warning("the daemon was gone; started again")
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = problems

    def _read(self) -> Config | None:
        try:
            read = reader.load(self._config.path)
        except TproxyError as error:
            if str(error) != self._said:
                log.warning("%s; what it said last stays in force", error)
            self._said = str(error)
            return None
        self._said = ""
        return read

    def _reread(self) -> None:
        output.reopen()
        read = self._read()
        if read is None:
            return
        self._config = read
        output.set_level(logging.DEBUG if self._debug else read.log_level)
        for warning in read.warnings:
            output.warn(warning)
        if self._kept_by is not None and not read.watch:
            log.info("%s wants no watcher any more", read.path)
            self._loop.stop()
            return
        self._attendant.configure(read)

    def _replace(self) -> None:
        """Go on as the installed code, with the same process id; not if that could not read the file."""
        if self._read() is None:
            return
        arguments = ["--debug"] if self._debug else []
        arguments += ["watch", "--config", self._config.path]
        arguments += ["--kept-by", str(os.getppid())] if self._kept_by is not None else []
        # Nobody can find or signal it meanwhile: whoever wants to end all of us waits for the lock.
        lock = run_directory.take_lock()
        if self._mender.is_missing_maps():
            lock.release()
            self._loop.call_later(SETTLE, self._replace)
            return
        service_manager.replace("tproxy", *arguments, "--lock", str(lock.fileno()), keep=lock.fileno())


def run(path: str, kept_by: int | None, lock: int | None, *, debug: bool) -> None:
    # All descriptors that may be had: each bridge takes some twenty (probe), and most are given 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    output.for_command(DEFAULT_LEVEL, debug=debug)
    try:
        read = reader.load(os.path.abspath(path))
    except TproxyError as error:
        log.error("no watcher: %s", error)  # nobody reads what one that the daemon keeps prints
        raise
    output.for_command(read.log_level, debug=debug)
    for warning in read.warnings:
        output.warn(warning)
    Watcher(read, kept_by, debug=debug).run(lock)

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

from tproxy import foreground, instance, logs, nft, process, reader, running, serving
from tproxy.attend import Attendant
from tproxy.config import Config
from tproxy.errors import ProcessError, TproxyError
from tproxy.lifeline import Lifeline
from tproxy.logger import DEFAULT_LEVEL
from tproxy.loop import Loop
from tproxy.mend import SETTLE, TICK, UNSTEADY, Mender
from tproxy.netlink import LinkEvents, RulesetEvents
from tproxy.title import set_title
from tproxy.watchdog import PLACE

log = logging.getLogger(__name__)


class Watcher:
    """``read`` is the configuration of now; ``kept_by`` the daemon that started this, if one did."""

    def __init__(self, read: Config, kept_by: int | None, *, debug: bool) -> None:
        self._config = read
        self._kept_by = kept_by
        self._debug = debug
        self._said = ""
        self._problems: list[str] = []  # with the daemon, when it was looked for last
        os.chdir(instance.prepare())
        self._place = instance.claim(PLACE)
        if self._place is None:
            raise ProcessError("a watcher is running already")
        self._loop = Loop()
        # A daemon that this one brings back is to keep it as before.
        watch = read.watch_file if kept_by is not None else None
        self._watch = watch
        self._mender = Mender(self._loop, lambda: self._config, watch)
        self._attendant = Attendant(self._loop, read, self._mender.uplinks, watch)
        self._lifeline = Lifeline(self._loop, self._daemon_ended)

    def run(self, lock: int | None) -> None:
        """Watch until a signal ends the process. ``lock`` is the host's, if it was taken for us."""
        self._loop.on_signal(signal.SIGHUP, self._reread)
        self._loop.on_signal(signal.SIGUSR2, self._replace)
        set_title(running.WATCHER_TITLE)
        foreground.ready()  # for signals; before, SIGHUP ended it
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
            with instance.lock():
                if serving.daemon_answers() or not (self._watch or nft.read_maps()):
                    return
                problems = process.start(self._config.log_level, self._watch)
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
        logs.reopen()
        read = self._read()
        if read is None:
            return
        self._config = read
        logs.set_level(logging.DEBUG if self._debug else read.log_level)
        for warning in read.warnings:
            logs.warn(warning)
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
        lock = instance.take_lock()
        if self._mender.is_missing_maps():
            os.close(lock)
            self._loop.call_later(SETTLE, self._replace)
            return
        foreground.replace("tproxy", *arguments, "--lock", str(lock), keep=lock)


def run(path: str, kept_by: int | None, lock: int | None, *, debug: bool) -> None:
    # All descriptors that may be had: each bridge takes some twenty (probe), and most are given 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logs.for_command(DEFAULT_LEVEL, debug=debug)
    try:
        read = reader.load(os.path.abspath(path))
    except TproxyError as error:
        log.error("no watcher: %s", error)  # nobody reads what one that the daemon keeps prints
        raise
    logs.for_command(read.log_level, debug=debug)
    for warning in read.warnings:
        logs.warn(warning)
    Watcher(read, kept_by, debug=debug).run(lock)

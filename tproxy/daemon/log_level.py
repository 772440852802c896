"""The log level of all processes: the one of the configuration file, or one that an operator has set.

An operator's level counts until the operator takes it back, until its time is over, or until the daemon is
replaced or ends. Neither a hook, nor a reload, nor the watcher changes it, though each of them brings the
level of the configuration file, which is noted for later. After a crash the next daemon takes that one, too.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from tproxy.daemon.client import Json
from tproxy.kernel.loop import Loop, Timer
from tproxy.log import output
from tproxy.log.lazy import JSON
from tproxy.process import level_file, table

log = logging.getLogger(__name__)

LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


class LogLevel:
    """``changed`` is called when relays and workers have to be told ``output.level()`` anew."""

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self.configured = output.level()  # a style: level and format (``log.file``)
        self._set: int | None = None
        self._end = 0.0  # of the operator's level, by time.monotonic(); 0: none
        self._timer: Timer | None = None

    def forget(self) -> None:
        """Have the watcher take the level of the configuration file: the daemon begins, or ends."""
        self._set = None
        self._tell_watcher()

    def configure(self, style: int) -> None:
        """Take over the level and the format of the configuration file."""
        self.configured = style
        self._apply()

    def set(self, level: int | None, seconds: float | None) -> None:
        """Use this level until further notice, or for so long; None: that of the configuration file."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set, self._end = level, 0.0
        if level is not None and seconds is not None:
            self._end = time.monotonic() + seconds
            self._timer = self._loop.call_later(seconds, lambda: self.set(None, None))
        self._apply()
        # At any level: who reads the log must know why lines are missing, or are there.
        log.log(
            output.level() & ~JSON,
            "log level is %s now, %s",
            logging.getLevelName(output.level() & ~JSON),
            "as configured" if level is None else "as an operator has set it",
        )
        self._changed()
        self._tell_watcher()

    def report(self) -> Json:
        """Return the levels, and for how many seconds the operator's still counts; None: for ever."""
        left = max(self._end - time.monotonic(), 0.0) if self._end else None
        return {"level": output.level() & ~JSON, "configured": self.configured & ~JSON, "left": left}

    def _apply(self) -> None:
        style = self.configured
        output.set_level(style if self._set is None else self._set | (style & JSON))

    def _tell_watcher(self) -> None:
        try:
            if level_file.write(self._set):
                table.send_signal(signal.SIGUSR1, table.find().watchers)
        except OSError as error:
            log.warning("the watcher keeps its log level: %s", error.strerror)

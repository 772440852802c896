"""The daemon, with a fault: SIGHUP raises ZeroDivisionError. Takes the daemon's options."""

from __future__ import annotations

from tproxy.daemon import __main__
from tproxy.daemon.daemon import Daemon


def fail(self: Daemon) -> None:
    raise ZeroDivisionError


Daemon._reopen_logs = fail  # type: ignore[method-assign]
__main__.main()

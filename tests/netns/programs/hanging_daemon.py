"""A daemon that hangs while it starts, with the host's lock from a hook that is gone: ``hanging_daemon.py``.

Its time for the start is one second.
"""

from __future__ import annotations

import os
import signal
import sys

from tproxy.daemon import __main__ as process
from tproxy.daemon import daemon


def hang(*_: object, **__: object) -> None:
    signal.pause()


def main() -> None:
    process.START_TIMEOUT = 1
    setattr(daemon, "Daemon", hang)  # noqa: B010 - mypy knows that it is a class
    sys.argv += ["--lock", str(os.open("/dev/null", os.O_RDONLY))]
    process.main()


main()

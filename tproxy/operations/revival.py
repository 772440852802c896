"""Starts a daemon in the place of one that has crashed: ``python -m tproxy.operations.revival SETTINGS FD``.

The spawner of that daemon starts this program (``daemon.revival``). SETTINGS is a JSON object with the fields
of ``model.Settings``; those that this version does not know are ignored. FD is written to when nothing more
is to be done: a daemon runs, or none is wanted.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from tproxy.bridge import nftables
from tproxy.daemon import client, revival
from tproxy.errors import TproxyError
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.model import Settings
from tproxy.operations import life, lost_table
from tproxy.process import run_directory

log = logging.getLogger("tproxy.operations.revival")  # not __main__, which is how it is run


def main() -> None:
    known: dict[str, object] = json.loads(sys.argv[1])
    settings = Settings(**{key: value for key, value in known.items() if key in Settings._fields})  # type: ignore[arg-type]
    output.to_file(output.DAEMON_LOG, settings.log_level or DEFAULT_LEVEL)
    try:
        revive(settings)
    except (TproxyError, OSError) as error:  # OSError: no descriptor or process is free now
        log.error("the daemon has ended, and cannot be started again yet: %s", error)
        sys.exit(1)
    os.write(int(sys.argv[2]), b"!")


def revive(settings: Settings) -> None:
    """Start a daemon unless one runs or none is wanted. Raises TproxyError and OSError."""
    with run_directory.lock(run_directory.ALL_BRIDGES) as lock:
        if client.daemon_answers():
            return
        if bridges := lost_table.bereft():
            log.error("the daemon has ended, and no map is left by which to serve %s", ", ".join(bridges))
            return  # the next hook or a watcher brings maps, and a daemon
        if not (settings.watch_file or nftables.read_maps()):
            return
        count = os.environ.get(revival.COUNT, "1")
        in_a_row = f", {count} in a row" if count != "1" else ""
        log.warning("the daemon has ended unexpectedly%s; starting another", in_a_row)
        for problem in life.start(settings, lock):
            log.warning("%s", problem)


if __name__ == "__main__":
    main()

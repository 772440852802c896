"""watch: bridges follow their guests, and are kept in order, without any hook."""

from __future__ import annotations

import os

import click

from tproxy.config.services import required
from tproxy.console import require_root


@click.command()
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.option("--kept-by", type=int, hidden=True)  # by the daemon of that pid: see tproxy.watchdog
@click.option("--lock", type=int, hidden=True)  # the host's, held by one that replaces itself
@click.pass_obj
def watch(debug: bool, file: str | None, kept_by: int | None, lock: int | None) -> None:
    """Bring bridges up when guests come, down when they have gone, and repair what is broken.

    Which bridges come and go with their guests is named by tproxy_bridges in the configuration file; all
    that are up are kept in order. Runs until it is ended; on SIGHUP the file is read again.
    """
    require_root()
    path = required(file, os.environ)
    from tproxy.watch import watcher as watching  # large

    watching.run(path, kept_by, lock, debug=debug)

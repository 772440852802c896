"""watch: brings bridges up and down with their guests, and repairs them, without any hook."""

from __future__ import annotations

import os

import click

from tproxy.cli.examples import example
from tproxy.config.file import required
from tproxy.console import require_root


@click.command(epilog=example("tproxy watch --config /etc/tproxy/tproxy.yaml"))
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.option("--kept-by", type=int, hidden=True)  # the pid of a daemon: see tproxy.daemon.watcher_keeper
@click.option("--lock", type=int, hidden=True)  # the host's lock, which a watcher that replaced itself holds
@click.pass_obj
def watch(debug: bool, file: str | None, kept_by: int | None, lock: int | None) -> None:
    """Bring bridges up and down with their guests, and repair them.

    tproxy_bridges in the configuration file names the bridges that come and go with their guests. Every
    bridge that is up is repaired. Runs until it is ended, and reads the file again on SIGHUP.
    """
    require_root()
    path = required(file, os.environ)
    from tproxy.watch import watcher as watching  # large

    watching.run(path, kept_by, lock, debug=debug)

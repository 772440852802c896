"""gc: removes what hooks left behind."""

from __future__ import annotations

import os
import sys

import click

from tproxy.cli.examples import example
from tproxy.config import joined
from tproxy.config.file import search
from tproxy.config.services import DEFAULT_WATCH_GRACE
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import TproxyError
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.operations.gc import candidates, look, remove


@click.command(epilog=example("tproxy gc --dry-run"))
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Leave bridges alone that a hook brought up more recently.  [default: tproxy_watch_grace, or 30]",
)
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.pass_obj
def gc(debug: bool, dry_run: bool, grace: float | None, file: str | None) -> None:
    """Remove what hooks left behind.

    That is everything of tproxy for bridges that are gone or have no guest. Prints a line for each thing
    removed. Leaves alone what other programs made.
    """
    require_root()
    path = search(file, os.environ)
    read = joined.load(path) if path else None
    if dry_run:
        output.for_preview(debug=debug)
    else:
        output.for_command(read.log_style if read else DEFAULT_LEVEL, debug=debug)
    if grace is None:
        grace = read.watch_grace if read else DEFAULT_WATCH_GRACE
    failed = False
    for bridge in candidates():
        try:
            leftover = look(bridge, read.bridges if read else (), grace)
            if leftover and (dry_run or remove(leftover, grace)):
                for line in leftover.removal:
                    click.echo(line)
        except TproxyError as error:
            say(f"bridge {bridge}: {error}")
            failed = True
    sys.exit(EXIT_FAILURE if failed else 0)

"""status: shows what runs, as a line for each process, a table or JSON."""

from __future__ import annotations

import click

from tproxy.cli import report
from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.daemon import client
from tproxy.errors import ProcessError
from tproxy.process import table


@click.command(epilog=example("tproxy status --verbose", "tproxy status --json"))
@click.option("--json", "as_json", is_flag=True, help="Print processes and services as JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Print processes, and a table of all services.")
def status(as_json: bool, verbose: bool) -> None:
    """Show the running processes, a line each, the daemon first."""
    require_root()
    found = table.find()
    if not as_json and not verbose:
        for title, pid in found.lines:
            click.echo(f"{title}: {pid}")
        return
    show = report.as_json if as_json else report.as_table
    try:
        click.echo(show(found.lines, client.status()))
    except ProcessError:
        click.echo(show(found.lines, None))  # what is known without the daemon
        raise

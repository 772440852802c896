"""status: shows what runs, as a line for each process, a table or JSON."""

from __future__ import annotations

from typing import Any

import click

from tproxy.bridge import obstacles
from tproxy.cli import report, tables
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
    try:
        daemon = client.status()
        if daemon is not None:
            _add_obstacles(daemon["bridges"])
        _show(found.lines, daemon, as_json=as_json)
    except ProcessError:
        _show(found.lines, None, as_json=as_json)  # what is known without the daemon
        raise


def _show(processes: report.Lines, daemon: dict[str, Any] | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(report.as_json(processes, daemon))
    else:
        tables.show(report.as_tables(processes, daemon))


def _add_obstacles(bridges: dict[str, Any]) -> None:
    """Add to each bridge of the daemon's answer what keeps guests from its services.

    The command looks, not the daemon, which would serve nobody meanwhile.
    """
    firewall = obstacles.HostFirewall()
    for bridge, details in bridges.items():
        details["obstacles"] = [each._asdict() for each in obstacles.of(bridge, firewall)]

"""lab: try it on this machine, and leave nothing."""

from __future__ import annotations

import sys

import click

from tproxy.console import require_root
from tproxy.lab import tour as laboratory


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab for looking around.")
@click.option("--down", is_flag=True, help="Remove a lab that was kept.")
def lab(keep: bool, down: bool) -> None:
    """Build a throw-away lab on this machine and show guests reaching their services."""
    require_root()
    sys.exit(laboratory.lab_down() if down else laboratory.run_lab(keep))

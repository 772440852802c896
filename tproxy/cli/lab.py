"""lab: shows tproxy at work on this machine, and leaves nothing behind."""

from __future__ import annotations

import sys

import click

from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.lab import tour as laboratory


@click.command(epilog=example("tproxy lab", "tproxy lab --keep"))
@click.option("--keep", is_flag=True, help="Keep the lab, to look around in it.")
@click.option("--down", is_flag=True, help="Remove a lab that was kept.")
def lab(keep: bool, down: bool) -> None:
    """Show guests reaching their services, in a throw-away lab.

    The lab has network namespaces of its own, and leaves nothing on this machine.
    """
    require_root()
    sys.exit(laboratory.lab_down() if down else laboratory.run_lab(keep))

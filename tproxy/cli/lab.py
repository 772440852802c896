"""lab: shows tproxy at work on this machine, and leaves nothing behind."""

from __future__ import annotations

import sys

import click

from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.lab import tour as laboratory


@click.command(epilog=example("tproxy lab", "tproxy lab --keep", "tproxy lab --egress"))
@click.option("--keep", is_flag=True, help="Keep the lab, to look around in it.")
@click.option("--down", is_flag=True, help="Remove a lab that was kept.")
@click.option("--egress", is_flag=True, help="Show guests installing software through the egress instead.")
def lab(keep: bool, down: bool, egress: bool) -> None:
    """Show guests reaching their services, in a throw-away lab.

    The lab has network namespaces of its own, and leaves nothing on this machine.
    """
    require_root()
    if egress:
        if keep or down:
            raise click.UsageError("--egress goes with neither --keep nor --down")
        from tproxy.lab.egress import tour

        sys.exit(tour.run_tour())
    sys.exit(laboratory.lab_down() if down else laboratory.run_lab(keep))

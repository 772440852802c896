"""lab: shows tproxy at work on this machine, and leaves nothing behind."""

from __future__ import annotations

import sys

import click

from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.lab import tour as laboratory


@click.command(
    epilog=example("tproxy lab", "tproxy lab --keep", "tproxy lab --egress", "tproxy lab --inward")
)
@click.option("--keep", is_flag=True, help="Keep the lab, to look around in it.")
@click.option("--down", is_flag=True, help="Remove a lab that was kept.")
@click.option("--egress", is_flag=True, help="Show guests installing software through the egress instead.")
@click.option("--inward", is_flag=True, help="Show clients outside reaching what guests serve instead.")
def lab(keep: bool, down: bool, egress: bool, inward: bool) -> None:
    """Show guests reaching their services, in a throw-away lab.

    The lab has network namespaces of its own, and leaves nothing on this machine.
    """
    require_root()
    if inward:
        if keep or down or egress:
            raise click.UsageError("--inward goes with no other option")
        from tproxy.lab import inward as way_in

        sys.exit(way_in.run_tour())
    if egress:
        if keep or down:
            raise click.UsageError("--egress goes with neither --keep nor --down")
        from tproxy.lab.egress import tour

        sys.exit(tour.run_tour())
    sys.exit(laboratory.lab_down() if down else laboratory.run_lab(keep))

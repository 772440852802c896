"""egress status, metrics: what the node is like now."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tproxy.cli.egress_root import layout_of, root_option
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.egress.service import state
from tproxy.errors import to_ascii


@click.command(epilog=example("tproxy egress status", "tproxy egress status --json"))
@click.option("--json", "as_json", is_flag=True, help="Print the facts and the findings as JSON.")
@root_option
def status(as_json: bool, root: Path | None) -> None:
    """Print what runs, and what is wrong. The exit code is 1 when something is wrong."""
    require_root()
    found = state.look(layout_of(root))
    if as_json:
        click.echo(state.as_document(found))
    else:
        for line in state.as_text(found):
            click.echo(to_ascii(line))
    sys.exit(EXIT_FAILURE if state.findings(found) else 0)


@click.command(epilog=example("tproxy egress metrics > /var/lib/prometheus/node-exporter/egress.prom"))
@root_option
def metrics(root: Path | None) -> None:
    """Print figures for Prometheus, as node_exporter's textfile collector reads them."""
    require_root()
    click.echo(state.metrics(state.look(layout_of(root))), nl=False)

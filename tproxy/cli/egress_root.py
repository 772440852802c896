"""The option --root, which commands of the egress share, and what lies below it. Imports nothing large."""

from __future__ import annotations

from pathlib import Path

import click

from tproxy.egress.layout import Layout
from tproxy.egress.store.store import Store

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TPROXY_EGRESS_ROOT",
    help="Keep everything below this directory (etc, state, run, log), instead of below /.",
)


def layout_of(root: Path | None) -> Layout:
    """Return where the node's files are."""
    return Layout.below(root) if root else Layout()


def store_of(layout: Layout) -> Store:
    """Open the store."""
    return Store(layout.store)

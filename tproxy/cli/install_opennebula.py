"""install opennebula, uninstall opennebula: our hooks and command in OpenNebula's remotes."""

from __future__ import annotations

from pathlib import Path

import click

from tproxy.errors import TproxyError

_remotes = click.option(
    "--remotes",
    default="/var/lib/one/remotes",
    show_default=True,
    type=click.Path(path_type=Path),
    help="OpenNebula's remotes: on the front-end /var/lib/one/remotes, on a hypervisor /var/tmp/one.",
)


@click.command("opennebula")
@_remotes
def install(remotes: Path) -> None:
    """Put hooks and command into OpenNebula's remotes."""
    raise TproxyError("not built yet")


@click.command("opennebula")
@_remotes
def uninstall(remotes: Path) -> None:
    """Take them out."""
    raise TproxyError("not built yet")

"""install proxmox, uninstall proxmox: our hookscript among Proxmox VE's snippets."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from tproxy.platforms.install import Piece, put, take_out, template

HOOK = "tproxy"

_snippets = click.option(
    "--snippets",
    default="/var/lib/vz/snippets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The snippets folder of a storage.",
)


@click.command("proxmox")
@_snippets
@click.option("--strict", is_flag=True, help="A guest whose services cannot be had does not start.")
def install(snippets: Path, strict: bool) -> None:
    """Put the hookscript among the snippets; then `qm set VMID --hookscript local:snippets/tproxy`.

    May be repeated, with and without --strict.
    """
    # By the Python that runs this, since tproxy is there.
    text = template("proxmox/hook", PYTHON=shlex.quote(sys.executable), STRICT="yes" if strict else "no")
    changed = put([Piece(snippets / HOOK, text)])
    click.echo("\n".join(map(str, changed)) or "everything is in place")


@click.command("proxmox")
@_snippets
def uninstall(snippets: Path) -> None:
    """Take the hookscript out. Guests that name it will not start: `qm set VMID --delete hookscript`."""
    click.echo("\n".join(map(str, take_out([snippets / HOOK]))) or "nothing of ours is there")

"""install libvirt, uninstall libvirt: our hook in libvirt's folders of hooks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from tproxy.platforms.install import Piece, put, take_out, template

FOLDERS = ("qemu.d", "lxc.d", "network.d")
HOOK = "tproxy"

_hooks = click.option(
    "--hooks",
    default="/etc/libvirt/hooks",
    show_default=True,
    type=click.Path(path_type=Path),
    help="libvirt's folder of hooks.",
)


@click.command("libvirt")
@_hooks
@click.option("--strict", is_flag=True, help="A guest whose services cannot be had does not start.")
def install(hooks: Path, strict: bool) -> None:
    """Have libvirt call us for guests and networks; then restart its daemons.

    May be repeated, with and without --strict.
    """
    # By the Python that runs this, since tproxy is there.
    text = template("libvirt/hook", PYTHON=shlex.quote(sys.executable), STRICT="yes" if strict else "no")
    changed = put([Piece(path, text) for path in _places(hooks)])
    click.echo("\n".join(map(str, changed)) or "everything is in place")


@click.command("libvirt")
@_hooks
def uninstall(hooks: Path) -> None:
    """Take out of libvirt's hooks what `install` put there."""
    click.echo("\n".join(map(str, take_out(_places(hooks)))) or "nothing of ours is there")


def _places(hooks: Path) -> list[Path]:
    return [hooks / folder / HOOK for folder in FOLDERS]

"""install opennebula, uninstall opennebula: our hooks and command in OpenNebula's remotes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from tproxy.errors import TproxyError
from tproxy.platforms import opennebula
from tproxy.platforms.install import put, take_out

_remotes = click.option(
    "--remotes",
    default="/var/lib/one/remotes",
    show_default=True,
    type=click.Path(path_type=Path),
    help="OpenNebula's remotes: on the front-end /var/lib/one/remotes, on a hypervisor /var/tmp/one.",
)
_sudoers = click.option(
    "--sudoers",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also this hypervisor's sudoers folder: /etc/sudoers.d.",
)


@click.command("opennebula")
@_remotes
@_sudoers
@click.option(
    "--command",
    type=click.Path(path_type=Path),
    help="Where tproxy is on the hypervisors.  [default: where it is here]",
)
@click.option("--strict", is_flag=True, help="A guest whose services cannot be had does not start.")
@click.option(
    "--config",
    "services",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the services are on the hypervisors, if not in OpenNebulaNetwork.conf.",
)
@click.option("--drop-in", is_flag=True, help="Only the command: OpenNebula's own driver does the rest.")
def install(
    remotes: Path,
    sudoers: Path | None,
    command: Path | None,
    strict: bool,
    services: Path | None,
    drop_in: bool,
) -> None:
    """Put hooks and command into OpenNebula's remotes; then run `onehost sync -f`.

    May be repeated, also with other options. OpenNebula's own vnm/tproxy is kept beside it.
    """
    if drop_in and (strict or services):
        raise click.UsageError("--strict and --config are for hooks, which --drop-in does without")
    for option, path in (("--command", command), ("--config", services)):
        if path and not path.is_absolute():  # hooks are called in any directory, and look in no PATH
            raise click.UsageError(f"{option} must begin with /")
    pieces = opennebula.pieces(
        remotes, command or _this_command(), drop_in=drop_in, strict=strict, services=services
    )
    if sudoers:
        pieces.append(opennebula.sudoers(sudoers))
        _check_sudoers(pieces[-1].text)
    # What an earlier call has put there, with other options.
    surplus = set(opennebula.places(remotes)) - {piece.path for piece in pieces}
    changed = put(pieces)  # first, since it refuses before it changes anything
    changed += take_out(sorted(surplus))
    click.echo("\n".join(map(str, changed)) or "everything is in place")


@click.command("opennebula")
@_remotes
@_sudoers
def uninstall(remotes: Path, sudoers: Path | None) -> None:
    """Take out of OpenNebula's remotes what `install` put there."""
    opennebula.require_remotes(remotes)
    places = [*opennebula.places(remotes), *([opennebula.sudoers(sudoers).path] if sudoers else [])]
    click.echo("\n".join(map(str, take_out(places))) or "nothing of ours is there")


def _this_command() -> Path:
    """By the name it was called: often a link, which stays when a version goes."""
    called = Path(sys.argv[0])
    return (called if called.name == "tproxy" else Path(sys.executable).with_name("tproxy")).absolute()


def _check_sudoers(text: str) -> None:
    """By sudo's own parser: a mistake in one file makes sudo refuse everything to everybody."""
    visudo = shutil.which("visudo", path="/usr/sbin:/sbin:/usr/bin")
    if visudo is None:
        return
    done = subprocess.run([visudo, "-cf", "-"], check=False, input=text, capture_output=True, text=True)
    if done.returncode:
        raise TproxyError(f"visudo refuses the sudoers snippet: {done.stderr or done.stdout}")

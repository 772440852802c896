"""install opennebula, uninstall opennebula: tproxy's hooks and command in OpenNebula's remotes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from tproxy.cli.examples import example
from tproxy.cli.install_commands import say_installed, say_removed, strict_option
from tproxy.errors import TproxyError
from tproxy.platforms import opennebula
from tproxy.platforms.install import put, take_out

_remotes = click.option(
    "--remotes",
    default="/var/lib/one/remotes",
    show_default=True,
    type=click.Path(path_type=Path),
    help="OpenNebula's remotes: /var/lib/one/remotes on the front-end, /var/tmp/one on a hypervisor.",
)
_sudoers = click.option(
    "--sudoers",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Include the snippet in this hypervisor's sudoers folder: /etc/sudoers.d.",
)


@click.command(
    "opennebula",
    epilog=example(
        "tproxy install opennebula && onehost sync -f",
        "tproxy install opennebula --remotes /var/tmp/one --sudoers /etc/sudoers.d",
    ),
)
@_remotes
@_sudoers
@click.option(
    "--command",
    type=click.Path(path_type=Path),
    help="Path of tproxy on the hypervisors.  [default: its path on this host]",
)
@strict_option
@click.option(
    "--config",
    "services",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the services on the hypervisors, if it is not OpenNebulaNetwork.conf.",
)
@click.option(
    "--drop-in", is_flag=True, help="Install only the command, which OpenNebula's own driver calls."
)
def install(
    remotes: Path,
    sudoers: Path | None,
    command: Path | None,
    strict: bool,
    services: Path | None,
    drop_in: bool,
) -> None:
    """Install hooks and command into OpenNebula's remotes; then run `onehost sync -f`.

    Can be repeated, also with other options. OpenNebula's own vnm/tproxy is kept beside ours.
    """
    if drop_in and (strict or services):
        raise click.UsageError(
            "--strict and --config are options of the hooks, and --drop-in installs no hooks"
        )
    for option, path in (("--command", command), ("--config", services)):
        if path and not path.is_absolute():  # hooks run in any directory, with any PATH
            raise click.UsageError(f"{option} must begin with /")
    pieces = opennebula.pieces(
        remotes, command or _this_command(), drop_in=drop_in, strict=strict, services=services
    )
    if sudoers:
        pieces.append(opennebula.sudoers(sudoers))
        _check_sudoers(pieces[-1].text)
    # Files that an earlier call installed, with other options.
    surplus = set(opennebula.places(remotes)) - {piece.path for piece in pieces}
    changed = put(pieces)  # first, because it may refuse
    changed += take_out(sorted(surplus))
    say_installed(changed)


@click.command("opennebula", epilog=example("tproxy uninstall opennebula && onehost sync -f"))
@_remotes
@_sudoers
def uninstall(remotes: Path, sudoers: Path | None) -> None:
    """Remove from OpenNebula's remotes what `install` put there."""
    opennebula.require_remotes(remotes)
    places = [*opennebula.places(remotes), *([opennebula.sudoers(sudoers).path] if sudoers else [])]
    say_removed(take_out(places))


def _this_command() -> Path:
    """Return the path by which tproxy was called: often a link, which stays when the version changes."""
    called = Path(sys.argv[0])
    return (called if called.name == "tproxy" else Path(sys.executable).with_name("tproxy")).absolute()


def _check_sudoers(text: str) -> None:
    """Raise TproxyError when visudo refuses the text: with one wrong file sudo refuses every command."""
    visudo = shutil.which("visudo", path="/usr/sbin:/sbin:/usr/bin")
    if visudo is None:
        return
    done = subprocess.run([visudo, "-cf", "-"], check=False, input=text, capture_output=True, text=True)
    if done.returncode:
        raise TproxyError(f"visudo refuses the sudoers snippet: {done.stderr or done.stdout}")

"""What the commands ``install PLATFORM`` and ``uninstall PLATFORM`` of several platforms have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import click

from tproxy.cli.examples import example
from tproxy.platforms.install import Piece, put, take_out

strict_option = click.option(
    "--strict", is_flag=True, help="Do not start a guest whose services cannot be provided."
)


class Pieces(Protocol):
    """Returns the files to install into a folder of the platform."""

    def __call__(self, folder: Path, /, *, strict: bool) -> list[Piece]: ...


class Hooks(NamedTuple):
    """A platform whose hooks all go below one folder. ``option`` names that folder on the command line."""

    platform: str
    option: str
    default: str
    option_help: str
    pieces: Pieces
    places: Callable[[Path], Sequence[Path]]
    install_help: str
    uninstall_help: str
    install_example: str


def commands(hooks: Hooks) -> tuple[click.Command, click.Command]:
    """Make the commands ``install`` and ``uninstall`` of such a platform."""
    folder_option = click.option(
        hooks.option,
        "folder",
        default=hooks.default,
        show_default=True,
        type=click.Path(path_type=Path),
        help=hooks.option_help,
    )

    @click.command(hooks.platform, help=hooks.install_help, epilog=example(hooks.install_example))
    @folder_option
    @strict_option
    def install(folder: Path, strict: bool) -> None:
        say_installed(put(hooks.pieces(folder, strict=strict)))

    @click.command(
        hooks.platform, help=hooks.uninstall_help, epilog=example(f"tproxy uninstall {hooks.platform}")
    )
    @folder_option
    def uninstall(folder: Path) -> None:
        say_removed(take_out(hooks.places(folder)))

    return install, uninstall


def say_installed(changed: Sequence[Path]) -> None:
    """Print the files that were installed, a line each."""
    click.echo("\n".join(map(str, changed)) or "everything is in place")


def say_removed(removed: Sequence[Path]) -> None:
    """Print the files that were removed, a line each."""
    click.echo("\n".join(map(str, removed)) or "nothing of ours is there")

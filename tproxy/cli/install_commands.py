"""What the commands ``install PLATFORM`` and ``uninstall PLATFORM`` of several platforms have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import click

from tproxy.cli.examples import example
from tproxy.console import say
from tproxy.errors import TproxyError
from tproxy.platforms.install import Piece, put, take_out

strict_option = click.option(
    "--strict", is_flag=True, help="Do not start a guest whose services cannot be provided."
)


class Pieces(Protocol):
    """Returns the files to install into a folder of the platform."""

    def __call__(self, folder: Path, /, *, strict: bool) -> list[Piece]: ...


class Hooks(NamedTuple):
    """A platform whose hooks all go below one folder. ``option`` names that folder on the command line.

    ``advice`` returns a line for an operator who has installed the hooks; "" for none.
    """

    platform: str
    option: str
    default: str
    option_help: str
    pieces: Pieces
    places: Callable[[Path], Sequence[Path]]
    install_help: str
    uninstall_help: str
    install_example: str
    advice: Callable[[], str] = str


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
        _require(hooks, folder)
        say_installed(put(hooks.pieces(folder, strict=strict)))
        if advice := hooks.advice():
            say(advice)

    @click.command(
        hooks.platform, help=hooks.uninstall_help, epilog=example(f"tproxy uninstall {hooks.platform}")
    )
    @folder_option
    def uninstall(folder: Path) -> None:
        say_removed(take_out(hooks.places(folder)))

    return install, uninstall


def _require(hooks: Hooks, folder: Path) -> None:
    """Raise TproxyError when the folder is not the platform's: nobody would ever call what is put there.

    A platform need not have made the folder, but then it has made the one above.
    """
    if not (folder.is_dir() or (folder.name == Path(hooks.default).name and folder.parent.is_dir())):
        raise TproxyError(
            f"{folder} does not exist: is {hooks.platform} installed? Else give {hooks.option} DIR"
        )


def say_installed(changed: Sequence[Path]) -> None:
    """Print the files that were installed, a line each."""
    click.echo("\n".join(map(str, changed)) or "everything is in place")


def say_removed(removed: Sequence[Path]) -> None:
    """Print the files that were removed, a line each."""
    click.echo("\n".join(map(str, removed)) or "nothing of ours is there")

"""install, uninstall: the hooks by which a platform calls tproxy.

A platform has a line in TARGETS, and a module of this package with two click commands, ``install`` and
``uninstall``.
"""

from __future__ import annotations

from importlib import import_module

import click

from tproxy.cli.examples import example

TARGETS = {
    "opennebula": "install_opennebula",
    "libvirt": "install_libvirt",
    "proxmox": "install_proxmox",
}


class _Targets(click.Group):
    """A group with a command for each platform, which has the group's own name in the platform's module."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(TARGETS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in TARGETS:
            return None
        assert self.name is not None
        found = getattr(import_module(f"tproxy.cli.{TARGETS[name]}"), self.name)
        assert isinstance(found, click.Command)
        return found


@click.group(
    cls=_Targets, subcommand_metavar="PLATFORM [OPTIONS]", epilog=example("tproxy install libvirt --strict")
)
def install() -> None:
    """Make a platform call tproxy when guests come and go."""


@click.group(
    cls=_Targets, subcommand_metavar="PLATFORM [OPTIONS]", epilog=example("tproxy uninstall libvirt")
)
def uninstall() -> None:
    """Remove from a platform exactly what `install` put there."""

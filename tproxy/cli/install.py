"""install, uninstall: what makes a platform call our hooks, put in place and taken out.

A platform is a module ``tproxy.cli.install_<platform>`` with a click command ``install`` and one
``uninstall``, and a line in TARGETS.
"""

from __future__ import annotations

from importlib import import_module

import click

TARGETS = {
    "opennebula": "install_opennebula",
    "libvirt": "install_libvirt",
    "proxmox": "install_proxmox",
}


class _Targets(click.Group):
    """A group whose commands are all called like the group, each from its platform's module."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(TARGETS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in TARGETS:
            return None
        assert self.name is not None
        found = getattr(import_module(f"tproxy.cli.{TARGETS[name]}"), self.name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Targets, subcommand_metavar="PLATFORM [OPTIONS]")
def install() -> None:
    """Have a platform call our hooks when its guests come and go."""


@click.group(cls=_Targets, subcommand_metavar="PLATFORM [OPTIONS]")
def uninstall() -> None:
    """Take out of a platform exactly what `install` put there."""

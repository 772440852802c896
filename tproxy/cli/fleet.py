"""fleet: for operators of hosts that follow one store. The subcommands are in modules ``fleet_*``."""

from __future__ import annotations

from importlib import import_module

import click

from tproxy.cli.examples import example

# The subcommands as help lists them, each with the module of tproxy.cli that defines it.
SUBCOMMANDS = {
    "init": "fleet_init",
    "check": "fleet_policy",
    "diff": "fleet_policy",
    "apply": "fleet_apply",
    "rollback": "fleet_apply",
    "status": "fleet_status",
    "history": "fleet_status",
    "places": "fleet_places",
    "import": "fleet_import",
}


class _Subcommands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        attribute = "import_" if name == "import" else name
        found = getattr(import_module(f"tproxy.cli.{SUBCOMMANDS[name]}"), attribute)
        assert isinstance(found, click.Command)
        return found


@click.group(
    cls=_Subcommands, epilog=example("tproxy fleet check", "tproxy fleet apply --canary 2 --then 10%")
)
def fleet() -> None:
    """Give hosts what one policy says: compile, show, apply in stages, follow, and go back."""

"""egress: the group of commands for software that guests without a route install."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import click

from tproxy.cli.examples import example
from tproxy.errors import TproxyError

# Each command with the module of tproxy.cli that defines it. A module is imported when its command is called.
COMMANDS = {
    "up": "egress_service",
    "down": "egress_service",
    "status": "egress_status",
    "metrics": "egress_status",
    "reload": "egress_service",
    "run": "egress_service",
    "ca": "egress_service",
    "host": "egress_hosts",
    "join": "egress_hosts",
    "check": "egress_policy",
    "allow": "egress_policy",
    "deny": "egress_policy",
    "learned": "egress_policy",
    "mirror": "egress_mirror",
    "bundle": "egress_bundle",
    "upgrade": "egress_upgrade",
    "log": "egress_audit",
    "sbom": "egress_audit",
    "report": "egress_audit",
}

# Modules of the extra, one of each package that commands import.
_NEEDED = ("aiohttp", "cryptography", "cyclonedx", "dns", "packageurl", "packaging")


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        _require_extra()
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        _require_extra()
        found = getattr(import_module(f"tproxy.cli.{COMMANDS[name]}"), name)
        assert isinstance(found, click.Command)
        return found


def _require_extra() -> None:
    for module in _NEEDED:
        if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
            raise TproxyError("egress needs more packages: pip install one-tproxy[egress]")


@click.group(
    cls=_Commands, epilog=example("tproxy egress check", "tproxy egress allow pypi requests --network build")
)
def egress() -> None:
    """Install software on guests without a route, by a policy for each network."""

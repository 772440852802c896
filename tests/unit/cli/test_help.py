"""Help: `tproxy --help` lists each command in a group, and the help of each command shows an example."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tproxy.cli.commands import COMMANDS, GROUPS, cli
from tproxy.cli.event import HELP as EVENT_HELP
from tproxy.cli.hook import HELP as HOOK_HELP
from tproxy.cli.install import TARGETS

OWN_HELP = {"hook": HOOK_HELP, "event": EVENT_HELP}


def help_of(*command: str) -> str:
    if command and command[0] in OWN_HELP:
        return OWN_HELP[command[0]]
    done = CliRunner().invoke(cli, [*command, "--help"])
    assert done.exit_code == 0
    return done.output


def test_the_commands_are_listed_in_groups() -> None:
    lines = iter(help_of().splitlines())
    for group, names in GROUPS.items():
        assert f"{group}:" in lines
        for name in names:
            assert next(lines).split()[0] == name


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in sorted(COMMANDS)),
        *((verb, target) for verb in ("install", "uninstall") for target in TARGETS),
    ],
    ids=" ".join,
)
def test_the_help_of_a_command_shows_an_example_of_it(command: tuple[str, ...]) -> None:
    _, _, examples = help_of(*command).partition("Example")
    assert f"tproxy {' '.join(command)}" in examples

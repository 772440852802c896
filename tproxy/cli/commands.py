"""The commands, each imported when it is called, and what all of them share."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from tproxy import __version__
from tproxy.console import EXIT_INTERRUPTED, in_utf8, say
from tproxy.kernel import children

# The module of tproxy.cli in which each command is defined, under its own name.
COMMANDS = {
    "start": "life",
    "stop": "life",
    "restart": "life",
    "reload": "life",
    "daemon": "life",
    "status": "status",
    "check": "check",
    "refresh": "refresh",
    "sync": "sync",
    "install": "install",
    "uninstall": "install",
    "watch": "watch",
    "gc": "gc",
    "lab": "lab",
}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return super().get_command(context, name)
        found = getattr(import_module(f"tproxy.cli.{COMMANDS[name]}"), name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tproxy")
@click.option("--debug", is_flag=True, envvar="TPROXY_DEBUG", help="Log more, show tracebacks.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Chosen services for guests of isolated networks, at 169.254.16.9."""
    context.obj = debug


@cli.command(
    "hook",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="What VM network drivers call.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def hook(debug: bool, arguments: tuple[str, ...]) -> None:
    """Reached only behind an option of ours: ``tproxy --debug hook``; see tproxy.cli.main."""
    from tproxy.cli import hook as module

    module.run([*in_utf8(arguments), *(["--debug"] if debug else [])])


def run() -> None:
    """Parse the process's arguments and do what they say."""
    children.can_be_waited_for()
    try:
        # Not standalone: click would print a TproxyError's traceback, and so would we not.
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        message = error.format_message()
        if "\n" in message:  # the help, where no command was given
            error.show()
        else:
            say(message)
        sys.exit(error.exit_code)

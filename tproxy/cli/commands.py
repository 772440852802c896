"""The group of click commands: which there are, how help lists them, and what all of them share."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from tproxy import __version__
from tproxy.cli.examples import example
from tproxy.console import EXIT_INTERRUPTED, in_utf8, say
from tproxy.kernel import children

# The commands as `tproxy --help` lists them, each with the module of tproxy.cli that defines it. A module is
# imported when its command is called.
GROUPS = {
    "Run": {
        "start": "life",
        "stop": "life",
        "restart": "life",
        "reload": "life",
        "reopen-logs": "life",
        "daemon": "life",
        "watch": "watch",
        "gc": "gc",
    },
    "Inspect": {
        "status": "status",
        "connections": "connections",
        "kill": "connections",
        "log-level": "log_level",
        "metrics": "metrics",
        "check": "check",
        "doctor": "doctor",
        "probe": "probe",
        "trace": "trace",
        "route": "route",
    },
    "Configure": {"refresh": "refresh", "sync": "sync", "gateway": "gateway", "names": "names"},
    "Tunnels": {"tunnel": "tunnel", "node": "node", "operator": "operator"},
    "Fleet": {"follow": "follow", "fleet": "fleet"},
    "Software for guests": {"egress": "egress"},
    "Platforms": {"install": "install", "uninstall": "install"},
    "Try": {"lab": "lab"},
    "For programs": {"hook": "commands", "event": "commands"},
}
COMMANDS = {name: module for group in GROUPS.values() for name, module in group.items()}

# `tproxy hook` and `tproxy event` read their own arguments, --help included.
_UNREAD = {"ignore_unknown_options": True}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found = getattr(import_module(f"tproxy.cli.{COMMANDS[name]}"), name.replace("-", "_"))
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, COMMANDS))
        room = formatter.width - longest - 4  # beside the name, its indent and the gap behind it
        for group, names in GROUPS.items():
            commands = [(name, self.get_command(context, name)) for name in names]
            rows = [(name.ljust(longest), each.get_short_help_str(room)) for name, each in commands if each]
            with formatter.section(group):
                formatter.write_dl(rows)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("tproxy hook up --bridge br0 --network vnet1", "tproxy status --verbose"),
)
@click.version_option(__version__, prog_name="tproxy")
@click.option("--debug", is_flag=True, envvar="TPROXY_DEBUG", help="Log more, show tracebacks.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Offer chosen services to guests of isolated networks, at 169.254.16.9."""
    context.obj = debug


@click.command(
    "hook",
    add_help_option=False,
    context_settings=_UNREAD,
    short_help="Bring a bridge up or down: for network drivers.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def hook(debug: bool, arguments: tuple[str, ...]) -> None:
    """Reached only behind an option of the group, as in ``tproxy --debug hook``; see tproxy.cli.main."""
    from tproxy.cli import hook as module

    module.run([*in_utf8(arguments), *(["--debug"] if debug else [])])


@click.command(
    "event",
    add_help_option=False,
    context_settings=_UNREAD,
    short_help="Handle one event: for installed hooks.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def event(debug: bool, arguments: tuple[str, ...]) -> None:
    """Reached only behind an option of the group, as ``hook``."""
    from tproxy.cli import event as module

    sys.exit(module.run(list(arguments), debug=debug))


def run() -> None:
    """Parse the arguments of the process, and carry out the command that they name."""
    children.can_be_waited_for()
    try:
        # In standalone mode click would print the traceback of a TproxyError.
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

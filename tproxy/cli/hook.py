"""hook up, hook down: what VM network drivers call.

Read by hand: importing click takes as long as all the rest of a run that finds everything in order, which is
what nearly every VM start is, and argparse a tenth of it. getopt guesses: `--f` would be `--force`.
"""

from __future__ import annotations

import os
import sys

from tproxy.console import EXIT_USAGE, require_root, say
from tproxy.model import Network
from tproxy.operations import hook
from tproxy.typed import NoReturn

HELP = """\
Usage: tproxy hook up --bridge NAME [OPTION]...
       tproxy hook down --bridge NAME [OPTION]...

What VM network drivers call.

  up                 Have the configured services on a bridge; ports listen when this returns.
  down               Remove what `up` built; a bridge with guests is left alone.

Options:
  --bridge NAME
  --network NAME     name of the virtual network
  --network-id ID    id of the virtual network
  --config FILE      configuration file to use
  --uplink DEV       port that leads off this host; for several, again
  --force            down: also when guests are attached
  --dry-run          print what would be done, a line each, and do nothing
  --debug            log more, show tracebacks
  --help             show this, and do nothing"""

FLAGS = ("--dry-run", "--debug", "--help", "--force")
VALUES = ("--bridge", "--network", "--network-id", "--config", "--uplink")


class Options:
    """What the command line says; None is a missing option, where that differs from an empty one."""

    def __init__(self) -> None:
        self.bridge: str | None = None
        self.network = ""
        self.network_id = ""
        self.config: str | None = None
        self.uplinks: frozenset[str] = frozenset()
        self.dry_run = False
        self.force = False
        self.debug = bool(os.environ.get("TPROXY_DEBUG"))


def run(arguments: list[str]) -> None:
    """Carry out the arguments behind ``tproxy hook``. Raises TproxyError when that cannot be done."""
    command, *rest = arguments or ["nothing"]
    if command in ("-h", "--help"):
        _help()
    if command not in _COMMANDS:
        _refuse("hook", f"up or down, not {command!a}")
    options = parse(command, rest)
    if options.bridge is None:
        _refuse(f"hook {command}", "--bridge NAME is missing")
    require_root()
    _COMMANDS[command](
        hook.Call(
            options.bridge,
            Network(options.network, options.network_id),
            options.uplinks,
            # A path keeps the bytes that the caller gave, whatever the locale's encoding.
            options.config and os.fsdecode(options.config.encode(errors="surrogateescape")),
            options.dry_run,
            options.force,
            options.debug,
        )
    )


def parse(command: str, arguments: list[str]) -> Options:
    """What is behind ``up`` or ``down``; ends the process where that cannot be, or asks for help."""
    options = Options()
    words = iter(arguments)
    value: str | None
    for word in words:
        option, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            _help()
        elif option in VALUES:
            if not equals:
                value = next(words, None)
                # Another option in its place: a driver's variable was empty. No name is meant by it.
                if value is None or value.partition("=")[0] in (*FLAGS, *VALUES):
                    _refuse(f"hook {command}", f"{option} needs a value")
            if option == "--uplink":
                options.uplinks |= {value}
            else:
                setattr(options, _attribute(option), value)
        elif word in FLAGS and (word, command) != ("--force", "up"):
            setattr(options, _attribute(option), True)
        else:
            _refuse(f"hook {command}", f"what is {word!a}?")
    return options


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _help() -> NoReturn:
    _print([HELP])
    sys.exit()


def _refuse(command: str, why: str) -> NoReturn:
    say(f"{command}: {why}")
    sys.exit(EXIT_USAGE)


def _up(call: hook.Call) -> None:
    _print(hook.up(call))


def _down(call: hook.Call) -> None:
    lines, guests = hook.down(call)
    _print(lines)
    if guests:
        say(hook.left_alone(call.bridge, guests))


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


_COMMANDS = {"up": _up, "down": _down}

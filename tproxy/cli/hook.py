"""hook up, hook down: the commands that VM network drivers call.

The arguments are read by hand. Nearly every VM start finds everything in order; importing click would take as
long as the rest of such a run, and argparse a tenth of it. getopt accepts abbreviations: `--f` would be
`--force`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tproxy.bridge.members import Nics
from tproxy.console import EXIT_USAGE, require_root, say
from tproxy.errors import BadName
from tproxy.model import Network
from tproxy.names import check_interface_name, check_mac
from tproxy.operations import hook
from tproxy.typed import NoReturn

HELP = """\
Usage: tproxy hook up --bridge NAME [OPTION]...
       tproxy hook down --bridge NAME [OPTION]...

Bring a bridge up or down. VM network drivers call this when a NIC comes or goes.

  up                 provide the configured services on a bridge; ports listen when this returns
  down               remove what `up` built; leave a bridge with guests alone, and exit with 4

Options:
  --bridge NAME      bridge of the guests
  --network NAME     name of the virtual network
  --network-id ID    id of the virtual network
  --config FILE      configuration file to use
  --mac MAC          address of the guest's network card; may be repeated. Where networks share a bridge,
                     it tells which guest gets the services of which network
  --port DEV         port of the bridge behind which the card of the --mac before it is; may be repeated
  --uplink DEV       port that leads off this host; may be repeated
  --force            with down: remove it although guests are attached
  --dry-run          print each step that would be taken, and take none
  --debug            log more, show tracebacks
  --help             show this help

Examples:
  tproxy hook up --bridge br0 --network vnet1 --network-id 0 --uplink eth1
  tproxy hook down --bridge br0 --uplink eth1"""

# The exit code of a `down` that did nothing, because guests are attached. Drivers call `down` for each guest
# that ends, and take this code for success.
EXIT_IN_USE = 4

FLAGS = ("--dry-run", "--debug", "--help", "--force")
VALUES = ("--bridge", "--network", "--network-id", "--config", "--uplink", "--mac", "--port")


class Options:
    """The options of the command line. None, or an empty text or set, stands for a missing option."""

    def __init__(self) -> None:
        self.bridge: str | None = None
        self.network = ""
        self.network_id = ""
        self.config: str | None = None
        self.uplinks: frozenset[str] = frozenset()
        self.macs: frozenset[str] = frozenset()
        self.ports: frozenset[tuple[str, str]] = frozenset()  # each with the MAC before it, or ""
        self.dry_run = False
        self.force = False
        self.debug = bool(os.environ.get("TPROXY_DEBUG"))


def run(arguments: list[str]) -> None:
    """Carry out the arguments that follow ``tproxy hook``. Raises TproxyError when that fails."""
    command, *rest = arguments or ["nothing"]
    if command in ("-h", "--help"):
        _help()
    if command not in _COMMANDS:
        _refuse("hook", f"the command is up or down, not {command!a}")
    options = parse(command, rest)
    if options.bridge is None:
        _refuse(f"hook {command}", "--bridge NAME is missing")
    require_root()
    _COMMANDS[command](
        hook.Call(
            options.bridge,
            Network(options.network, options.network_id),
            options.uplinks,
            # The path keeps the bytes that the caller gave, in any locale.
            options.config and os.fsdecode(options.config.encode(errors="surrogateescape")),
            options.dry_run,
            options.force,
            options.debug,
            Nics(options.macs, options.ports),
        )
    )


def parse(command: str, arguments: list[str]) -> Options:
    """Read the arguments behind ``up`` or ``down``; end the process if they are wrong or ask for help."""
    options = Options()
    mac = ""
    words = iter(arguments)
    value: str | None
    for word in words:
        option, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            _help()
        elif option in VALUES:
            if not equals:
                value = next(words, None)
                # An option in place of the value: a variable of the driver was empty, and was not quoted.
                if value is None or value.partition("=")[0] in (*FLAGS, *VALUES):
                    _refuse(f"hook {command}", f"{option} needs a value")
            if option == "--uplink":
                options.uplinks |= {value}
            elif option == "--mac":
                mac = _checked(command, option, check_mac, value)
                options.macs |= {mac}
            elif option == "--port":
                options.ports |= {(_checked(command, option, _port, value), mac)}
            else:
                setattr(options, _attribute(option), value)
        elif word in FLAGS and (word, command) != ("--force", "up"):
            setattr(options, _attribute(option), True)
        else:
            hint = "" if options.bridge else _suggestion(command, word)
            _refuse(f"hook {command}", f"unexpected argument {word!a}{hint}")
    return options


def _suggestion(command: str, word: str) -> str:
    """Return how to say it, if the word can be the name of a bridge; otherwise ""."""
    try:
        check_interface_name(word)
    except BadName:
        return ""
    return "" if word.startswith("-") else f": did you mean tproxy hook {command} --bridge {word}?"


def _port(text: str) -> str:
    return check_interface_name(text, "port")


def _checked(command: str, option: str, check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except BadName as error:
        _refuse(f"hook {command}", f"{option}: {error}")


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
        sys.exit(EXIT_IN_USE)


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


_COMMANDS = {"up": _up, "down": _down}

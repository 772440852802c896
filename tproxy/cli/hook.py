"""hook up, hook down: what VM network drivers call.

Read by hand: importing click takes as long as all the rest of a run that finds everything in order, which is
what nearly every VM start is, and argparse a tenth of it. getopt guesses: `--f` would be `--force`.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from tproxy import config, hook, recall
from tproxy.cli import require_root, say
from tproxy.errors import ConfigError
from tproxy.logger import DEFAULT_LEVEL, logger, when_needed
from tproxy.model import Network
from tproxy.typed import NoReturn

EXIT_USAGE = 2  # as click has it

log = logger(__name__)

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
    """What the command line says; None is what it does not say, and where that is not the same as nothing."""

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
    """Do what the arguments behind ``tproxy hook`` say; raises TproxyError when it cannot be."""
    command, *rest = arguments or ["nothing"]
    if command in ("-h", "--help"):
        _help()
    if command not in _COMMANDS:
        _refuse("hook", f"up or down, not {command!a}")
    options = parse(command, rest)
    if options.bridge is None:
        _refuse(f"hook {command}", "--bridge NAME is missing")
    require_root()
    _COMMANDS[command](options.bridge, options)


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


def _up(bridge: str, options: Options) -> None:
    read = _config(options.config, remember=not options.dry_run)
    _log(options, read.log_level)
    network = Network(options.network, options.network_id)
    last_known = partial(hook.last_known, bridge, network)
    services, warnings = config.services_for(read, network, last_known=last_known)
    hook.check(bridge, options.uplinks)
    for warning in [*read.warnings, *warnings]:
        log.warning("%s", warning)
    if not services:  # a bridge without services is nothing unusual, and not ours
        where = bridge, str(read.path), network.name, network.id
        log.info("bridge %s: no entry of %a applies to network %a, id %a", *where)
    elif options.dry_run:
        from tproxy import preview  # few want it, and it takes time

        _print(preview.up(bridge, network, services, options.uplinks, read.watch_file))
    else:
        hook.up(bridge, network, services, options.uplinks, read.log_level, read.watch_file)


def _down(bridge: str, options: Options) -> None:
    _log(options, DEFAULT_LEVEL)
    uplinks, force = options.uplinks, options.force
    if options.dry_run:
        from tproxy import preview

        lines, guests = preview.down(bridge, uplinks, force=force)
        _print(lines)
    else:
        guests = hook.down(bridge, uplinks, force=force)
    if guests:
        say(f"bridge {bridge} is in use by {', '.join(sorted(guests))}: left alone")


def _log(options: Options, level: int) -> None:
    def set_up() -> None:
        from tproxy import logs

        if options.dry_run:
            logs.for_preview(debug=options.debug)
        else:
            logs.for_command(level, debug=options.debug)

    when_needed(set_up)


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _config(explicit: str | None, *, remember: bool) -> config.Config:
    if explicit:
        explicit = os.fsdecode(explicit.encode(errors="surrogateescape"))  # a path is as the locale has it
    path = config.search(explicit, os.environ)
    if path is None:
        raise ConfigError("no configuration file: give --config FILE or write /etc/tproxy/tproxy.yaml")
    return recall.load(path, remember=remember)


_COMMANDS = {"up": _up, "down": _down}

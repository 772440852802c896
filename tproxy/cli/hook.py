"""hook up, hook down: what VM network drivers call.

On argparse: importing click takes as long as all the rest of a run that finds everything in order,
which is what nearly every VM start is.
"""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from typing import NoReturn

from tproxy import config, hook, logs, recall
from tproxy.cli import require_root, say
from tproxy.errors import ConfigError
from tproxy.model import Network

log = logging.getLogger(__name__)

# With a width argparse need not ask for the terminal's, for which it imports more than itself.
_format = partial(argparse.HelpFormatter, width=100)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Without the usage, and whatever was handed over: one line.
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def run(arguments: list[str]) -> None:
    """Do what the arguments behind ``tproxy hook`` say; raises TproxyError when it cannot be."""
    options = _parser().parse_args(arguments)
    require_root()
    _COMMANDS[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "tproxy hook",
        description="What VM network drivers call.",
        allow_abbrev=False,
        formatter_class=_format,
    )
    # With a name: otherwise argparse formats a usage to find one.
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down", prog=parser.prog)
    summaries = {
        "up": "Have the configured services on a bridge; ports listen when this returns.",
        "down": "Remove what `up` built; a bridge with guests is left alone.",
    }
    for name, summary in summaries.items():
        command = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, formatter_class=_format
        )
        add = command.add_argument
        add("--bridge", required=True, metavar="NAME")
        add("--network", default="", metavar="NAME", help="name of the virtual network")
        add("--network-id", default="", metavar="ID", help="id of the virtual network")
        add("--config", metavar="FILE", help="configuration file to use")
        add("--uplink", action="append", default=[], metavar="DEV", help="port that leads off this host")
        add("--dry-run", action="store_true", help="print what would be done, a line each, and do nothing")
        add("--debug", action="store_true", default=bool(os.environ.get("TPROXY_DEBUG")))
        if name == "down":
            add("--force", action="store_true", help="also when guests are attached")
    return parser


def _up(options: argparse.Namespace) -> None:
    read = _config(options.config, remember=not options.dry_run)
    _log(options, read.log_level)
    network, uplinks = Network(options.network, options.network_id), frozenset(options.uplink)
    last_known = partial(hook.last_known, options.bridge)
    services, warnings = config.services_for(read, network, last_known=last_known)
    hook.check(options.bridge, uplinks)
    for warning in [*read.warnings, *warnings]:
        logs.warn(warning)
    if not services:  # a bridge without services is nothing unusual, and not ours
        where = options.bridge, str(read.path), network.name, network.id
        log.info("bridge %s: no entry of %a applies to network %a, id %a", *where)
    elif options.dry_run:
        from tproxy import preview  # few want it, and it takes time

        _print(preview.up(options.bridge, network, services, uplinks, read.watch_file))
    else:
        hook.up(options.bridge, network, services, uplinks, read.log_level, read.watch_file)


def _down(options: argparse.Namespace) -> None:
    _log(options, logs.DEFAULT_LEVEL)
    bridge, uplinks, force = options.bridge, frozenset(options.uplink), options.force
    if options.dry_run:
        from tproxy import preview

        lines, guests = preview.down(bridge, uplinks, force=force)
        _print(lines)
    else:
        guests = hook.down(bridge, uplinks, force=force)
    if guests:
        say(f"bridge {bridge} is in use by {', '.join(sorted(guests))}: left alone")


def _log(options: argparse.Namespace, level: int) -> None:
    if options.dry_run:
        logs.for_preview(debug=options.debug)
    else:
        logs.for_command(level, debug=options.debug)


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

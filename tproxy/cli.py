"""The command line: parse, call, print, exit code; nothing else.

Imports are inside the commands: the hook runs at every VM start, and pays for what it needs only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tproxy import __version__
from tproxy.errors import TproxyError

if TYPE_CHECKING:
    from tproxy.config import Config

EXIT_FAILURE = 1
EXIT_INTERNAL = 70  # EX_SOFTWARE, sysexits.h(3head): please report it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tproxy")
@click.option("--debug", is_flag=True, envvar="TPROXY_DEBUG", help="Log more, show tracebacks.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Chosen services for guests of isolated networks, at 169.254.16.9."""
    context.obj = debug


def main() -> None:
    """The console script. Errors are one line on stderr; a traceback only with --debug."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except TproxyError as error:
        _fail(str(error), EXIT_FAILURE, error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _fail(f"internal error: {type(error).__name__}: {error}", EXIT_INTERNAL, error)


def _fail(line: str, code: int, error: Exception) -> None:
    if "--debug" in sys.argv or os.environ.get("TPROXY_DEBUG"):
        import traceback

        traceback.print_exception(error)
    click.echo(f"tproxy: {' '.join(line.split())}", err=True)
    sys.exit(code)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise TproxyError("must be run as root")


# Life


def _life(name: str, summary: str) -> Callable[[Callable[[int | None], list[str]]], click.Command]:
    """A command without arguments that changes what runs."""

    def decorate(function: Callable[[int | None], list[str]]) -> click.Command:
        @cli.command(name, help=summary)
        @click.pass_obj
        def command(debug: bool) -> None:
            from tproxy import instance, logs

            _require_root()
            level = _log_level()
            logs.for_command(level or logs.DEFAULT_LEVEL, debug=debug)
            with instance.lock():
                problems = function(level)
            for problem in problems:
                click.echo(f"tproxy: {problem}", err=True)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_life("start", "Start what is missing, end relays whose bridge has no map any more.")
def start(level: int | None) -> list[str]:
    from tproxy import process

    return process.start(level)


@_life("stop", "End all processes.")
def stop(level: int | None) -> list[str]:
    from tproxy import process

    process.stop()
    return []


@_life("restart", "Replace all processes; open connections go on.")
def restart(level: int | None) -> list[str]:
    from tproxy import process

    return process.restart(level)


@_life("reload", "Apply the maps as they are now; open connections go on.")
def reload(level: int | None) -> list[str]:
    from tproxy import process

    return process.start(level, reopen_logs=True)


def _log_level() -> int | None:
    """The configured level; None without a configuration. A broken one does not stop a start."""
    from tproxy import config

    try:
        path = config.search(None, os.environ)
        return config.load(path).log_level if path else None
    except TproxyError as error:
        click.echo(f"tproxy: {error}; the log level stays as it is", err=True)
        return None


# Status


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@click.option("--verbose", "-v", is_flag=True, help="A table of all services.")
def status(as_json: bool, verbose: bool) -> None:
    """Show running processes: a line each, the daemon first."""
    from tproxy import process

    _require_root()
    running = process.find()
    if as_json or verbose:
        from tproxy import report

        show = report.as_json if as_json else report.as_table
        click.echo(show(running.lines, process.ask_status()))
        return
    for title, pid in running.lines:
        click.echo(f"{title}: {pid}")


# Hooks


@cli.group()
def hook() -> None:
    """What VM network drivers call."""


def _hook_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--bridge", required=True, metavar="NAME"),
        click.option("--network", default="", metavar="NAME", help="Name of the virtual network."),
        click.option("--network-id", default="", metavar="ID", help="Id of the virtual network."),
        click.option("--config", "config_file", metavar="FILE", help="Configuration file to use."),
        click.option("--uplink", "uplinks", multiple=True, metavar="DEV", help="Port that leads off host."),
    ):
        function = option(function)
    return function


@hook.command("up")
@_hook_options
@click.pass_obj
def hook_up(
    debug: bool, bridge: str, network: str, network_id: str, config_file: str | None, uplinks: tuple[str, ...]
) -> None:
    """Have the configured services on a bridge; ports listen when this returns."""
    from tproxy import hook as driver
    from tproxy import logs
    from tproxy.config import services_for
    from tproxy.model import Network

    _require_root()
    config = _config(config_file)
    logs.for_command(config.log_level, debug=debug)
    identity = Network(network, network_id)
    services, warnings = services_for(config, identity)
    driver.check(bridge, frozenset(uplinks))
    for warning in [*config.warnings, *warnings]:
        logs.warn(warning)
    if services:
        driver.up(bridge, identity, services, frozenset(uplinks), config.log_level)


@hook.command("down")
@_hook_options
@click.option("--force", is_flag=True, help="Also when guests are attached.")
@click.pass_obj
def hook_down(
    debug: bool,
    bridge: str,
    network: str,
    network_id: str,
    config_file: str | None,
    uplinks: tuple[str, ...],
    force: bool,
) -> None:
    """Remove what ``up`` built; a bridge with guests is left alone."""
    from tproxy import hook as driver
    from tproxy import logs

    _require_root()
    level = logs.DEFAULT_LEVEL
    logs.for_command(level, debug=debug)
    guests = driver.down(bridge, frozenset(uplinks), force=force)
    if guests:
        click.echo(f"tproxy: bridge {bridge} is in use by {', '.join(sorted(guests))}: left alone", err=True)


def _config(explicit: str | None) -> Config:
    from tproxy import config
    from tproxy.errors import ConfigError

    path = config.search(explicit, os.environ)
    if path is None:
        raise ConfigError("no configuration file: give --config FILE or write /etc/tproxy/tproxy.yaml")
    return config.load(path)


# Lab


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the lab for looking around.")
@click.option("--down", is_flag=True, help="Remove a lab that was kept.")
def lab(keep: bool, down: bool) -> None:
    """Build a throw-away lab on this machine and show guests reaching their services."""
    from tproxy import lab as laboratory

    _require_root()
    sys.exit(laboratory.lab_down() if down else laboratory.run_lab(keep))

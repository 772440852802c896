"""refresh: a changed configuration file takes effect."""

from __future__ import annotations

import os
import sys

import click

from tproxy.config import reader
from tproxy.config.services import place, required
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import ConfigError
from tproxy.log import output
from tproxy.operations import life
from tproxy.operations import refresh as refreshing
from tproxy.process import run_directory


@click.command()
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.pass_obj
def refresh(debug: bool, file: str | None) -> None:
    """Apply the configuration file, as it is now, to the bridges that are up.

    For each bridge that a hook brought up for a network that it named, and to the processes; open
    connections go on. Prints which file that was, and for how many bridges it changed something.
    """
    require_root()
    path = required(file, os.environ)
    read = reader.load(path)
    if read.silent:
        # OpenNebula's own, most likely, found before the file that the hooks were given. It is no order to
        # take away all services.
        raise ConfigError(f"{place(path)}: no tproxy: in it, nothing is changed: give --config FILE")
    output.for_command(read.log_level, debug=debug)
    outcomes, warnings = refreshing.refresh(read)
    for warning in warnings:
        output.warn(warning)
    failed = [each.problem for each in outcomes if each.problem]
    with run_directory.lock() as lock:
        # The log level, a watcher; one that runs is to read the file too, or it goes on with the old one.
        problems = life.start(life.settings_from(read), lock, reopen_logs=True)
    for problem in dict.fromkeys([*failed, *problems]):
        say(problem)
    changed = sum(each.changed for each in outcomes)
    unchanged = len(outcomes) - changed - len(failed)
    click.echo(f"{path}: bridges changed {changed}, unchanged {unchanged}, failed {len(failed)}")
    sys.exit(EXIT_FAILURE if failed or problems else 0)

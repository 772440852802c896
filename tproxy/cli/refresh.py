"""refresh: applies a changed configuration file to the bridges that are up."""

from __future__ import annotations

import os
import sys

import click

from tproxy.cli.examples import example
from tproxy.config import reader
from tproxy.config.file import required
from tproxy.config.services import place
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import ConfigError
from tproxy.log import output
from tproxy.operations import life, lost_table
from tproxy.operations import refresh as refreshing
from tproxy.process import run_directory

# Not 1: where another program's maps are there on purpose, a script can tell this from a failure.
EXIT_SKIPPED = 3


@click.command(epilog=example("tproxy check && tproxy refresh"))
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.pass_obj
def refresh(debug: bool, file: str | None) -> None:
    """Apply the configuration file to the bridges that are up.

    Changes each bridge that a hook brought up, and the settings of the processes. Open connections go on.
    Bridges whose map another program loaded are skipped and named. Prints the file that was used, and the
    number of bridges that changed, did not change, failed and were skipped. The exit code is 1 when
    something failed, and 3 when everything was done except for the bridges that were skipped.
    """
    require_root()
    path = required(file, os.environ)
    read = reader.load(path)
    if read.silent:
        # Most likely it is OpenNebula's own file, found before the file that the hooks were given. That must
        # not remove all services.
        raise ConfigError(f"{place(path)}: there is no key tproxy, so nothing is changed: give --config FILE")
    output.for_command(read.log_style, debug=debug)
    with run_directory.lock():
        lost_table.require_table()
    outcomes, warnings = refreshing.refresh(read)
    for warning in warnings:
        output.warn(warning.at(path))
    failed = [f"{each.bridge}: {each.problem}" for each in outcomes if each.problem]
    skipped = [f"{each.bridge}: skipped: {each.skipped}" for each in outcomes if each.skipped]
    with run_directory.lock(run_directory.ALL_BRIDGES) as lock:
        # This applies the log level and starts or ends a watcher. A watcher that runs reads the file again.
        problems = life.start(life.settings_from(read), lock, reopen_logs=True)
    for problem in dict.fromkeys([*failed, *problems, *skipped]):
        say(problem)
    changed = sum(each.changed for each in outcomes)
    unchanged = len(outcomes) - changed - len(failed) - len(skipped)
    counts = f"changed {changed}, unchanged {unchanged}, failed {len(failed)}, skipped {len(skipped)}"
    click.echo(f"{path}: bridges {counts}")
    if failed or problems:
        sys.exit(EXIT_FAILURE)
    sys.exit(EXIT_SKIPPED if skipped else 0)

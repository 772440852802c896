"""refresh: applies a changed configuration file to the bridges that are up."""

from __future__ import annotations

import os
import sys

import click

from tproxy.cli.examples import example
from tproxy.config import joined
from tproxy.config.file import required
from tproxy.config.services import place
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import ConfigError
from tproxy.log import output
from tproxy.operations import refresh as refreshing

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
    read = joined.load(path)
    if read.silent:
        # Most likely it is OpenNebula's own file, found before the file that the hooks were given. That must
        # not remove all services.
        raise ConfigError(f"{place(path)}: there is no key tproxy, so nothing is changed: give --config FILE")
    output.for_command(read.log_style, debug=debug)
    applied = refreshing.apply(read)
    for warning in applied.warnings:
        output.warn(warning.at(path))
    skipped = [f"{each.bridge}: skipped: {each.skipped}" for each in applied.outcomes if each.skipped]
    for problem in dict.fromkeys([*applied.failures, *skipped]):
        say(problem)
    click.echo(f"{path}: bridges {', '.join(f'{word} {count}' for word, count in applied.counts.items())}")
    if applied.failures:
        sys.exit(EXIT_FAILURE)
    sys.exit(EXIT_SKIPPED if skipped else 0)

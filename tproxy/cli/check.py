"""check: find all problems of a configuration file."""

from __future__ import annotations

import os
import sys

import click

from tproxy.cli.examples import example
from tproxy.config import check as checking
from tproxy.config import keys, reader
from tproxy.config.file import required, text_of
from tproxy.config.resolver import addresses_of
from tproxy.config.services import Config
from tproxy.console import EXIT_FAILURE
from tproxy.errors import ConfigError

# Not 2, which means a wrong command line. Hooks work with such a file, without what is ignored of it.
EXIT_WARNINGS = 3


@click.command(epilog=example("tproxy check /etc/tproxy/tproxy.yaml"))
@click.argument("file", required=False)
@click.option("--no-resolve", is_flag=True, help="Do not look up host names.")
def check(file: str | None, no_resolve: bool) -> None:
    """Print all problems of the configuration FILE, a line each. Changes nothing.

    Without FILE, checks the file that hooks would find. The exit code is 0 when there is no problem, 3 when
    hooks would ignore a part of the file, and 1 when they could not use the file at all.
    """
    path = file or required(None, os.environ)
    try:
        read = reader.load(path, thorough=True)
    except ConfigError as error:
        problems, code = [str(error)], EXIT_FAILURE
    else:
        resolve = checking.all_resolve if no_resolve else addresses_of
        problems = [each.at(path) for each in checking.problems(read, resolve)]
        problems += _faults_of_names(read)
        code = EXIT_WARNINGS
    for problem in problems:
        click.echo(problem, err=True)  # file:line: text, as compilers print it, so that editors find the line
    if problems:
        sys.exit(code)
    count = len(read.entries)
    click.echo(f"{path}: in order, {count} {'entry' if count == 1 else 'entries'}")


def _faults_of_names(read: Config) -> list[str]:
    if not read.routes and keys.ELSEWHERE[0] not in text_of(read.path):
        return []
    from tproxy.inward.names.allowed import conflicts

    return [each.at(read.path) for each in conflicts(read)]

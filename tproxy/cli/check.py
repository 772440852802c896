"""check: is this configuration file all right?"""

from __future__ import annotations

import os
import sys

import click

from tproxy.config import check as checking
from tproxy.config import reader
from tproxy.config.services import required, resolve_ipv4
from tproxy.console import EXIT_FAILURE
from tproxy.errors import ConfigError

# Not 2: that is a wrong command line. The hook works with such a file, less what is ignored of it.
EXIT_WARNINGS = 3


@click.command()
@click.argument("file", required=False)
@click.option("--no-resolve", is_flag=True, help="Do not look up host names.")
def check(file: str | None, no_resolve: bool) -> None:
    """Say all that is wrong with the configuration FILE, a line each; change nothing.

    Without FILE: the one that hooks find. The exit code is 0 when nothing is wrong, 3 when hooks would
    ignore something of it, 1 when they could not use it at all.
    """
    path = file or required(None, os.environ)
    try:
        read = reader.load(path)
    except ConfigError as error:
        problems, code = [str(error)], EXIT_FAILURE
    else:
        resolve = checking.all_resolve if no_resolve else resolve_ipv4
        problems, code = checking.problems(read, resolve), EXIT_WARNINGS
    for problem in problems:
        click.echo(problem, err=True)  # as compilers do: editors find the line
    if problems:
        sys.exit(code)
    count = len(read.entries)
    click.echo(f"{path}: in order, {count} {'entry' if count == 1 else 'entries'}")

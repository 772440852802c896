"""start, stop, restart, reload, reopen-logs, daemon: commands without arguments, for the processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tproxy.cli.examples import example
from tproxy.config import joined
from tproxy.config.file import search
from tproxy.config.services import Config
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import TproxyError
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.operations import life, rotation
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock

# Takes the configuration, or None where it is unknown; returns a line for each problem.
Change = Callable[["Config | None", Lock], "list[str]"]


def _command(name: str, text: str, *examples: str) -> Callable[[Change], click.Command]:
    """Make a command that carries out a change while no hook works; ``text`` is its help."""

    def decorate(change: Change) -> click.Command:
        @click.command(name, help=text, epilog=example(*examples))
        @click.pass_obj
        def command(debug: bool) -> None:
            require_root()
            read = _read()
            output.for_command(read.log_style if read else DEFAULT_LEVEL, debug=debug)
            with run_directory.lock(run_directory.ALL_BRIDGES) as lock:
                problems = change(read, lock)
            for problem in problems:
                say(problem)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_command(
    "start",
    "Start missing processes, end relays without a map.\n\nWithout any map, end all processes.",
    "tproxy start && tproxy status",
)
def start(read: Config | None, lock: Lock) -> list[str]:
    return life.start(life.settings_from(read), lock)


@_command("stop", "End all processes.", "tproxy stop")
def stop(read: Config | None, lock: Lock) -> list[str]:
    life.stop()
    return []


@_command(
    "restart",
    "Replace all processes; open connections go on.\n\nThe new processes run the installed code.",
    "pip install --upgrade one-tproxy && tproxy restart",
)
def restart(read: Config | None, lock: Lock) -> list[str]:
    return life.restart(life.settings_from(read), lock)


@_command(
    "reload",
    "Apply the maps as they are now, and reopen the logs.\n\n"
    "New ports listen, removed ports stop listening, and the next connection dials a changed endpoint. "
    "Open connections go on.",
    "nft add element ip one_tproxy ep_br0 '{ 5030 : 10.11.12.13 . 5030 }' && tproxy reload",
)
def reload(read: Config | None, lock: Lock) -> list[str]:
    return life.start(life.settings_from(read), lock, reopen_logs=True)


@click.command(
    "reopen-logs",
    epilog=example("mv /var/log/one_tproxy.log /var/log/one_tproxy.log.1 && tproxy reopen-logs"),
)
def reopen_logs() -> None:
    """Have all processes reopen their logs, after a rotation.

    Does nothing else: starts and ends no process, reads no configuration file and no map.
    """
    require_root()
    problems = rotation.reopen_logs()
    for problem in problems:
        say(problem)
    sys.exit(EXIT_FAILURE if problems else 0)


@_command(
    "daemon",
    "Run the daemon in the foreground, for service managers.\n\nIt stays also while there is no map.",
    "ExecStart=/usr/local/bin/tproxy daemon",
)
def daemon(read: Config | None, lock: Lock) -> list[str]:
    life.become_daemon(life.settings_from(read))


def _read() -> Config | None:
    """Return the configuration; None when there is no file, or it is broken: that does not stop a start."""
    try:
        path = search(None, os.environ)
        return joined.load(path) if path is not None else None
    except TproxyError as error:
        say(f"{error}; the log level stays as it is")
        return None

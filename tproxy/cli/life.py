"""start, stop, restart, reload, daemon: commands without arguments that change what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tproxy.config import reader
from tproxy.config.services import Config, search
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.errors import TproxyError
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.operations import life
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock

# Takes what is configured, None where that is unknown; returns a line for each thing that could not be done.
Change = Callable[["Config | None", Lock], "list[str]"]


def _command(name: str, summary: str) -> Callable[[Change], click.Command]:
    def decorate(change: Change) -> click.Command:
        @click.command(name, help=summary)
        @click.pass_obj
        def command(debug: bool) -> None:
            require_root()
            read = _read()
            output.for_command(read.log_level if read else DEFAULT_LEVEL, debug=debug)
            with run_directory.lock() as lock:
                problems = change(read, lock)
            for problem in problems:
                say(problem)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_command("start", "Start what is missing, end relays whose bridge has no map any more.")
def start(read: Config | None, lock: Lock) -> list[str]:
    return life.start(life.settings_from(read), lock)


@_command("stop", "End all processes.")
def stop(read: Config | None, lock: Lock) -> list[str]:
    life.stop()
    return []


@_command("restart", "Replace all processes; open connections go on.")
def restart(read: Config | None, lock: Lock) -> list[str]:
    return life.restart(life.settings_from(read), lock)


@_command("reload", "Apply the maps as they are now; open connections go on.")
def reload(read: Config | None, lock: Lock) -> list[str]:
    return life.start(life.settings_from(read), lock, reopen_logs=True)


@_command("daemon", "Be the daemon, in the foreground, with or without maps: for service managers.")
def daemon(read: Config | None, lock: Lock) -> list[str]:
    life.become_daemon(life.settings_from(read))


def _read() -> Config | None:
    """What is configured; None without a configuration. A broken one does not stop a start."""
    try:
        path = search(None, os.environ)
        return reader.load(path) if path is not None else None
    except TproxyError as error:
        say(f"{error}; the log level stays as it is")
        return None

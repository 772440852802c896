"""start, stop, restart, reload: commands without arguments that change what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tproxy import config, instance, logs, process
from tproxy.cli import EXIT_FAILURE, require_root, say
from tproxy.errors import TproxyError

Change = Callable[["int | None"], "list[str]"]


def _command(name: str, summary: str) -> Callable[[Change], click.Command]:
    def decorate(change: Change) -> click.Command:
        @click.command(name, help=summary)
        @click.pass_obj
        def command(debug: bool) -> None:
            require_root()
            level = _log_level()
            logs.for_command(level or logs.DEFAULT_LEVEL, debug=debug)
            with instance.lock():
                problems = change(level)
            for problem in problems:
                say(problem)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_command("start", "Start what is missing, end relays whose bridge has no map any more.")
def start(level: int | None) -> list[str]:
    return process.start(level)


@_command("stop", "End all processes.")
def stop(level: int | None) -> list[str]:
    process.stop()
    return []


@_command("restart", "Replace all processes; open connections go on.")
def restart(level: int | None) -> list[str]:
    return process.restart(level)


@_command("reload", "Apply the maps as they are now; open connections go on.")
def reload(level: int | None) -> list[str]:
    return process.start(level, reopen_logs=True)


def _log_level() -> int | None:
    """The configured level; None without a configuration. A broken one does not stop a start."""
    try:
        path = config.search(None, os.environ)
        return config.load(path).log_level if path else None
    except TproxyError as error:
        say(f"{error}; the log level stays as it is")
        return None

"""start, stop, restart, reload, daemon: commands without arguments that change what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tproxy import config, instance, logs, process, reader
from tproxy.cli import EXIT_FAILURE, require_root, say
from tproxy.errors import TproxyError

# The log level, and the file that wants a watcher: see tproxy.process.start.
Change = Callable[["int | None", "str | None"], "list[str]"]


def _command(name: str, summary: str) -> Callable[[Change], click.Command]:
    def decorate(change: Change) -> click.Command:
        @click.command(name, help=summary)
        @click.pass_obj
        def command(debug: bool) -> None:
            require_root()
            level, watch = _settings()
            logs.for_command(level or logs.DEFAULT_LEVEL, debug=debug)
            with instance.lock():
                problems = change(level, watch)
            for problem in problems:
                say(problem)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_command("start", "Start what is missing, end relays whose bridge has no map any more.")
def start(level: int | None, watch: str | None) -> list[str]:
    return process.start(level, watch)


@_command("stop", "End all processes.")
def stop(level: int | None, watch: str | None) -> list[str]:
    process.stop()
    return []


@_command("restart", "Replace all processes; open connections go on.")
def restart(level: int | None, watch: str | None) -> list[str]:
    return process.restart(level, watch)


@_command("reload", "Apply the maps as they are now; open connections go on.")
def reload(level: int | None, watch: str | None) -> list[str]:
    return process.start(level, watch, reopen_logs=True)


@_command("daemon", "Be the daemon, in the foreground, with or without maps: for service managers.")
def daemon(level: int | None, watch: str | None) -> list[str]:
    process.become_daemon(level, watch)


def _settings() -> tuple[int | None, str | None]:
    """What is configured; None without a configuration. A broken one does not stop a start."""
    try:
        path = config.search(None, os.environ)
        if path is None:
            return None, None
        read = reader.load(path)
    except TproxyError as error:
        say(f"{error}; the log level stays as it is")
        return None, None
    return read.log_level, read.watch_file

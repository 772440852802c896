"""start, stop, restart, reload, daemon: commands without arguments that change what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tproxy import config, instance, logs, process, reader
from tproxy.cli import EXIT_FAILURE, require_root, say
from tproxy.config import Config
from tproxy.errors import TproxyError
from tproxy.logger import DEFAULT_LEVEL

# Takes what is configured, None where that is unknown; returns what could not be.
Change = Callable[["Config | None"], "list[str]"]


def _command(name: str, summary: str) -> Callable[[Change], click.Command]:
    def decorate(change: Change) -> click.Command:
        @click.command(name, help=summary)
        @click.pass_obj
        def command(debug: bool) -> None:
            require_root()
            read = _read()
            logs.for_command(read.log_level if read else DEFAULT_LEVEL, debug=debug)
            with instance.lock():
                problems = change(read)
            for problem in problems:
                say(problem)
            sys.exit(EXIT_FAILURE if problems else 0)

        return command

    return decorate


@_command("start", "Start what is missing, end relays whose bridge has no map any more.")
def start(read: Config | None) -> list[str]:
    return process.start(_level(read), watch_of(read))


@_command("stop", "End all processes.")
def stop(read: Config | None) -> list[str]:
    process.stop()
    return []


@_command("restart", "Replace all processes; open connections go on.")
def restart(read: Config | None) -> list[str]:
    return process.restart(_level(read), watch_of(read))


@_command("reload", "Apply the maps as they are now; open connections go on.")
def reload(read: Config | None) -> list[str]:
    return process.start(_level(read), watch_of(read), reopen_logs=True)


@_command("daemon", "Be the daemon, in the foreground, with or without maps: for service managers.")
def daemon(read: Config | None) -> list[str]:
    process.become_daemon(_level(read), watch_of(read))


def watch_of(read: Config | None) -> str | None:
    """The file that wants a watcher: see ``process.start``.

    It can be another than the one that was read: hooks may be given one of their own.
    """
    if read is not None and read.watch_file:
        return read.watch_file
    other = process.watched_file()
    try:
        return reader.load(other).watch_file if other else other
    except TproxyError:
        # What a broken one said last stays in force; of one that is gone too, unless there is another.
        return other if read is None or (other and os.path.lexists(other)) else ""


def _level(read: Config | None) -> int | None:
    return read.log_level if read is not None else None


def _read() -> Config | None:
    """What is configured; None without a configuration. A broken one does not stop a start."""
    try:
        path = config.search(None, os.environ)
        return reader.load(path) if path is not None else None
    except TproxyError as error:
        say(f"{error}; the log level stays as it is")
        return None

"""Reads the configuration file, and looks up its host names within a bounded time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tproxy.addresses import is_endpoint
from tproxy.config import check, reader, resolver
from tproxy.config.file import search
from tproxy.config.services import Config, NoAddress, Problem
from tproxy.errors import ConfigError

# Seconds. The system's resolver may take 10 s and more for each dead name server, and cannot be stopped.
_PATIENCE = 5.0

# Names that are looked up, a thread each: arbitrary, and more than files have.
_MOST_NAMES = 256

_UNANSWERED = NoAddress(f"does not resolve within {_PATIENCE:g} s", certain=False)


class Configuration(NamedTuple):
    """The file as it was found. ``named``: the path was given, so the repair commands have to name it too."""

    path: str | None = None
    named: bool = False
    unusable: str = ""
    read: Config | None = None
    problems: tuple[Problem, ...] = ()
    addresses: Mapping[str, Sequence[str] | NoAddress] = MappingProxyType({})  # of each host name in the file


def look(explicit: str | None, watch_file: str) -> Configuration:
    """Read the file that was named, or that hooks would find, or for which the daemon keeps a watcher."""
    try:
        path = search(explicit, os.environ) or (watch_file or None)
    except ConfigError as error:
        return Configuration(explicit, True, str(error))
    if path is None:
        return Configuration()
    named = explicit is not None
    try:
        read = reader.load(path, thorough=True)
    except ConfigError as error:
        return Configuration(path, named, str(error))
    problems = tuple(check.problems(read, check.all_resolve))
    named_by = (name for each in read.entries for name in each.remote_addr)
    names = sorted({each for each in named_by if not is_endpoint(each)})[:_MOST_NAMES]
    return Configuration(path, named, "", read, problems, look_up(names))


def look_up(names: Iterable[str]) -> dict[str, Sequence[str] | NoAddress]:
    """The addresses of each name, or why it has none. Names are looked up at the same time."""
    found: dict[str, Sequence[str] | NoAddress] = {}

    def look_up_one(name: str) -> None:
        found.update(resolver.addresses([name]))

    asked = list(names)
    # Daemon threads: this process may end while the resolver still waits for a name server.
    threads = [threading.Thread(target=look_up_one, args=(name,), daemon=True) for name in asked]
    for each in threads:
        each.start()
    deadline = time.monotonic() + _PATIENCE
    for each in threads:
        each.join(max(0.0, deadline - time.monotonic()))
    return {name: found.get(name, _UNANSWERED) for name in asked}

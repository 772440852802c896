"""The configuration as it was read last: to read YAML anew takes a fifth of a hook's time.

It counts for the same path, text and code, and for nothing else. So it is never out of date, and may be
lost at any time.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from tproxy import __version__, instance
from tproxy.config import Config, Entry, WatchedBridge, text_of
from tproxy.errors import KernelError
from tproxy.model import Network
from tproxy.typed import Any

FILE = "config.json"  # in the instance's directory, where only root can write

# What decides how a text is read; in a checkout it changes, and the version does not.
_FOLDER = os.path.dirname(__file__)
_CODE = [f"{_FOLDER}/{module}.py" for module in ("config", "model", "reader", "recall", "values")]


def load(path: str, *, remember: bool) -> Config:
    """As ``reader.load``; ``remember`` it for the next one."""
    text = text_of(path)
    key = [__version__, *map(_stamp, _CODE), path, text]
    found = _recall(key, path)
    if found is None:
        from tproxy import reader  # and PyYAML with it

        found = reader.parse(path, text)
        if remember:
            _remember(key, found)
    return found


def _stamp(file: str) -> list[int]:
    try:
        status = os.stat(file)
    except OSError:  # compiled files only, an archive: the version has to do
        return []
    return [status.st_mtime_ns, status.st_size]


def _recall(key: list[Any], path: str) -> Config | None:
    try:
        with open(f"{instance.directory()}/{FILE}", encoding="ascii") as file:
            known, said = json.load(file)
        if known != key:
            return None
        level, entries, warnings, bridges, *options = said
        return Config(
            path, level, tuple(map(_entry, entries)), tuple(warnings), tuple(map(_bridge, bridges)), *options
        )
    except (OSError, ValueError, TypeError, RecursionError):  # damaged: read anew, and written anew
        return None


def _remember(key: list[Any], found: Config) -> None:
    with suppress(OSError, KernelError):  # a hook does its work without
        path = f"{instance.prepare()}/{FILE}"
        unfinished = f"{path}.{os.getpid()}"
        try:
            with open(unfinished, "w", encoding="ascii") as file:
                json.dump([key, found[1:]], file, default=sorted)  # a set is the only type it does not know
            os.replace(unfinished, path)
        except OSError:  # a full /run must not fill any further
            os.unlink(unfinished)


def _entry(fields: list[Any]) -> Entry:
    entry = Entry(*fields)
    return entry._replace(networks=frozenset(entry.networks))


def _bridge(fields: list[Any]) -> WatchedBridge:
    pattern, network, uplinks = fields
    return WatchedBridge(pattern, Network(*network), frozenset(uplinks))

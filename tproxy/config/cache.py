"""The cache of the configuration that was read last: reading YAML anew takes a fifth of a hook's time.

An entry of the cache counts only for the same path, the same text and the same code. So it is never out of
date, and it may be lost at any time.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from tproxy import __version__
from tproxy.config.file import DOCUMENT, document, text_of
from tproxy.config.services import Config, Entry, Problem, WatchedBridge
from tproxy.errors import KernelError
from tproxy.process import run_directory
from tproxy.typed import Any

FILE = "config.json"  # in the run directory, where only root can write

# The code that decides how a text is read: this package, the types with their options, and what fits into
# nftables. In a checkout it changes while the version stays.
_PACKAGE = os.path.dirname(__file__)
_OTHERS = [
    f"{os.path.dirname(_PACKAGE)}/{name}"
    for name in ("addresses.py", "model.py", "names.py", "options.py", "routes.py")
]


def load(path: str, *, remember: bool) -> Config:
    """Read the file, or take what the cache has of this text; ``remember`` writes the cache.

    Raises ConfigError as ``reader.load`` does.
    """
    text, more = (None, document()) if path == DOCUMENT else (text_of(path), document())
    key = [__version__, *map(_stamp, _code()), path, text, more]
    found = _recall(key, path)
    if found is None:
        from tproxy.config import joined  # and PyYAML with it

        found = joined.parse(path, text, more)
        if remember:
            _remember(key, found)
    return found


def _code() -> list[str]:
    try:
        modules = sorted(name for name in os.listdir(_PACKAGE) if name.endswith(".py"))
    except OSError:  # in a zip archive: the version has to do
        return []
    return [*_OTHERS, *(f"{_PACKAGE}/{name}" for name in modules)]


def _stamp(file: str) -> list[int]:
    try:
        status = os.stat(file)
    except OSError:  # only compiled files, or a zip archive: the version has to do
        return []
    return [status.st_mtime_ns, status.st_size]


def _recall(key: list[Any], path: str) -> Config | None:
    try:
        with open(f"{run_directory.directory()}/{FILE}", encoding="ascii") as file:
            known, said = json.load(file)
        if known != key:
            return None
        level, entries, warnings, bridges, *options = said
        found = Config(
            path,
            level,
            tuple(map(_entry, entries)),
            tuple(Problem(*each) for each in warnings),
            tuple(map(_bridge, bridges)),
            *options,
        )
        return found._replace(
            routes=_routes(found.routes),
            gateway_ranges=tuple(found.gateway_ranges),
            gateway_domains=tuple(found.gateway_domains),
            said=frozenset(found.said),
            tunnels=_tunnels(found.tunnels),
        )
    except (OSError, ValueError, TypeError, RecursionError):  # damaged: read the file, and write this anew
        return None


def _remember(key: list[Any], found: Config) -> None:
    with suppress(OSError, KernelError):  # a hook does its work without the cache
        path = f"{run_directory.prepare()}/{FILE}"
        unfinished = f"{path}.{os.getpid()}"
        try:
            with open(unfinished, "w", encoding="ascii") as file:
                json.dump([key, found[1:]], file, default=sorted)  # a set is the only type that JSON lacks
            os.replace(unfinished, path)
        except OSError:  # such as a full /run, which must not fill any further
            os.unlink(unfinished)


def _entry(fields: list[Any]) -> Entry:
    entry = Entry(*fields)
    return entry._replace(
        remote_addr=tuple(entry.remote_addr),
        networks=frozenset(entry.networks),
        protocol=tuple(entry.protocol),
    )


def _bridge(fields: list[Any]) -> WatchedBridge:
    bridge = WatchedBridge(*fields)
    return bridge._replace(uplinks=frozenset(bridge.uplinks))


def _routes(listed: Any) -> tuple[Any, ...]:
    if not listed:
        return ()
    from tproxy.config.routes import RouteEntry  # few files have routes

    return tuple(RouteEntry(*each) for each in listed)


def _tunnels(listed: Any) -> tuple[Any, ...]:
    if not listed:
        return ()
    from tproxy.config.tunnels import TunnelEntry  # only a gateway's file has them

    return tuple(
        TunnelEntry(line, nodes, tuple(offer), tuple(operators), routes)
        for line, nodes, offer, operators, routes in listed
    )

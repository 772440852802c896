"""What the gateway may serve: routes whose names are granted, where the file has ``tproxy_zones``."""

from __future__ import annotations

import time
from typing import NamedTuple

from tproxy.config.keys import ELSEWHERE
from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config, Problem
from tproxy.errors import ConfigError


class Allowed(NamedTuple):
    """The routes that the gateway may serve, what is wrong with others, and domains that are proved."""

    routes: tuple[RouteEntry, ...]
    problems: list[Problem]
    domains: tuple[str, ...]


def allowed(config: Config) -> Allowed:
    """Judge the routes of a configuration. Raises ConfigError and LedgerError: then nothing is known."""
    from tproxy.config.file import text_of

    text = text_of(config.path)
    if ELSEWHERE[0] not in text:
        return Allowed(config.routes, [], ())
    from tproxy.inward.names import claims, ledger, reader

    zones, faults = reader.parse(text)
    if faults:
        raise ConfigError(faults[0].at(config.path))
    if not zones:
        return Allowed(config.routes, [], ())
    verdict = claims.judge(zones, config.routes, ledger.load(ledger.directory()), time.time())
    problems = [
        Problem(each.line, f"tproxy_routes: {each.id}: {verdict.refused[each.id]}: entry skipped")
        for each in config.routes
        if each.id in verdict.refused
    ]
    routes = tuple(each for each in config.routes if each.id not in verdict.refused)
    return Allowed(routes, problems, tuple(each.domain for each in verdict.zones))

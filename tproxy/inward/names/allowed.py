"""What the gateway may serve: routes whose names are granted (``claims``)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config, Problem
from tproxy.errors import ConfigError
from tproxy.inward.names.model import Zone


class Allowed(NamedTuple):
    """The routes that the gateway may serve, what is wrong with others, and domains that are proved."""

    routes: tuple[RouteEntry, ...]
    problems: list[Problem]
    domains: tuple[str, ...]
    zones: Mapping[str, Zone]  # by granted name

    def by_dns(self, name: str) -> tuple[list[str], dict[str, str]] | None:
        """Return options and settings by which lego proves a name; None for one in no zone with a server.

        Raises ServerError.
        """
        from tproxy.inward.names import acme

        zone = self.zones.get(name)
        return acme.by_dns(zone) if zone is not None and zone.server is not None else None


def allowed(config: Config) -> Allowed:
    """Judge the routes of a configuration. Raises ConfigError and LedgerError: then nothing is known."""
    from tproxy.inward.names import claims, ledger, reader

    zones, faults = reader.of_file(config.path)
    if faults:
        raise ConfigError(faults[0].at(config.path))
    verdict = claims.judge(zones, config.routes, ledger.load(ledger.directory()), time.time())
    problems = [
        Problem(
            each.line, f"tproxy_routes: {each.id}: {verdict.refused[each.id]}: entry skipped", each.origin
        )
        for each in config.routes
        if each.id in verdict.refused
    ]
    routes = tuple(each for each in config.routes if each.id not in verdict.refused)
    granted = {name: zone for name, zone in verdict.granted.values() if zone is not None}
    return Allowed(routes, problems, tuple(each.domain for each in verdict.zones), granted)


def conflicts(config: Config) -> list[Problem]:
    """Return what is wrong with zones, and with routes whose names another owner has, whoever proves what.

    Raises ConfigError.
    """
    from tproxy.inward.names import claims, reader

    zones, faults = reader.of_file(config.path)
    verdict = claims.judge(zones, config.routes, claims.assumed(zones), time.time())
    refused = verdict.refused if not faults else {}
    said = [
        Problem(each.line, f"tproxy_routes: {each.id}: {refused[each.id]}", each.origin)
        for each in config.routes
        if each.id in refused
    ]
    return [*faults, *said]

"""Applies a changed configuration file to the bridges that are up, without a VM start.

A hook call names the bridge's network, and the hook keeps it in the comment of the service map
(docs/contract.md, nftables is the database). So the same comparison can run again for that network. A map
without such a comment is left alone: another program made it, or a hook for no network in particular.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import nftables
from tproxy.config.resolver import services_for
from tproxy.config.services import Config, Problem
from tproxy.errors import TproxyError
from tproxy.model import Network, Service
from tproxy.operations import reconcile


class Outcome(NamedTuple):
    """The result for one bridge. ``problem`` is empty when the bridge is as the file says."""

    bridge: str
    changed: bool
    problem: str = ""


def refresh(read: Config) -> tuple[list[Outcome], list[Problem]]:
    """Bring all bridges whose network is known to what the file says; return the outcomes and the warnings.

    Each warning is returned once. A bridge for which this fails stays as it was, and the others are still
    refreshed. Where no entry applies any more, the map stays, but empty: its comment names the network, for
    which an entry may come back. Raises NftError when the maps cannot be read.
    """
    outcomes: list[Outcome] = []
    warnings = dict.fromkeys(read.warnings)
    for bridge, network, services, said in _wanted(read):
        warnings |= dict.fromkeys(said)
        try:
            outcomes.append(Outcome(bridge, reconcile.refresh(bridge, network, services, read.settings)))
        except TproxyError as error:
            outcomes.append(Outcome(bridge, changed=False, problem=f"{bridge}: {error}"))
    return outcomes, list(warnings)


def _wanted(read: Config) -> list[tuple[str, Network, dict[int, Service], list[Problem]]]:
    # All host names are resolved here: before anything changes, and without holding the host's lock.
    return [
        (each.bridge, each.network, *services_for(read, each.network, last_known=each.services.get))
        for each in sorted(nftables.read_maps(), key=lambda each: each.bridge)
        if each.network != Network()
    ]

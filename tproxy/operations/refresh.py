"""A changed configuration file takes effect on the bridges that are up, without a VM being started.

A hook's call names the network of a bridge, and the hook keeps it in the comment of the service map
(docs/architecture.md, State). With that the same reconciliation can be run again. A map without such
a comment was not made by our hook, or for no network in particular: it is left alone.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import nftables
from tproxy.config.services import Config, services_for
from tproxy.errors import TproxyError
from tproxy.model import Network, Service
from tproxy.operations import reconcile


class Outcome(NamedTuple):
    """What became of one bridge; ``problem`` is empty when it is as the file says."""

    bridge: str
    changed: bool
    problem: str = ""


def refresh(read: Config) -> tuple[list[Outcome], list[str]]:
    """Bring all bridges with a known network to what the file says; also warnings, each once.

    A bridge that cannot be brought there stays as it was, and the others go on. Where no entry applies
    any more the map stays, empty: it tells the network, should an entry for it come back.
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


def _wanted(read: Config) -> list[tuple[str, Network, dict[int, Service], list[str]]]:
    # All names are looked up here, before anything is changed, and not under the host's lock.
    return [
        (each.bridge, each.network, *services_for(read, each.network, last_known=each.services.get))
        for each in sorted(nftables.read_maps(), key=lambda each: each.bridge)
        if each.network != Network()
    ]

"""What nodes may offer, and who may use it: the decisions that follow from ``tproxy_tunnels``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tproxy.config.tunnels import TunnelEntry
from tproxy.inward.tunnel.names import IN, Offer, fits, offer_of
from tproxy.inward.tunnel.records import Operator


class Policy(NamedTuple):
    """The entries of a configuration file. What no entry allows is refused."""

    entries: tuple[TunnelEntry, ...] = ()

    def may_offer(self, node: str, offer: str) -> bool:
        return any(each.name == offer for _, each in self._offers(node))

    def offer_at(self, node: str, port: int) -> str | None:
        """Return the name of a node's offer with this port; None when there is none."""
        return next((each.name for _, each in self._offers(node) if each.port == port), None)

    def fault_of(self, operator: Operator, node: str, offer: str) -> str:
        """Why an operator may not use an offer; "" if the operator may."""
        if not fits(node, operator.nodes):
            return f"operator {operator.name} may not use node {node}"
        allowed = (entry.operators for entry, each in self._offers(node) if each.name == offer)
        if not any(fits(operator.name, pattern) for patterns in allowed for pattern in patterns):
            return f"operator {operator.name} may not use {offer} of node {node}"
        return ""

    def may_route(self, node: str, offer: str) -> bool:
        """Whether routes may lead to an offer. They lead to guests by ``in``."""
        return any(entry.routes for entry, each in self._offers(node) if each.name == offer)

    def used_by(self, operator: Operator, node: str) -> list[Offer]:
        """Return the offers of a node that an operator may use."""
        found = {each for _, each in self._offers(node) if each.name != IN}
        return sorted(each for each in found if not self.fault_of(operator, node, each.name))

    def _offers(self, node: str) -> Iterator[tuple[TunnelEntry, Offer]]:
        for entry in self.entries:
            if fits(node, entry.nodes):
                for each in entry.offer:
                    yield entry, offer_of(each)


def of(entries: Iterable[TunnelEntry]) -> Policy:
    return Policy(tuple(entries))

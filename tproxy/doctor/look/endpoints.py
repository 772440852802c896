"""Which endpoints this host reaches: those of TCP are dialled, those of UDP asked for a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.doctor.look import datagrams, dial
from tproxy.doctor.look.dial import Dialled
from tproxy.model import TCP, UDP, Endpoint, Service

# By protocol and endpoint.
Reached = Mapping[tuple[str, Endpoint], Dialled]


def look(services: Iterable[Service], worker: int | None) -> Reached:
    """Look at the endpoints of these services, each once for each protocol.

    ``worker`` is as in ``dial.dial``.
    """
    by_protocol: dict[str, list[Service]] = {TCP: [], UDP: []}
    for each in services:
        by_protocol[each.key.protocol].append(each)
    found = {
        TCP: dial.dial(by_protocol[TCP], worker),
        UDP: datagrams.ask(by_protocol[UDP], worker),
    }
    return {(protocol, each): what for protocol, some in found.items() for each, what in some.items()}

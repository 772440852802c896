"""What is known of nodes, for a list: each that has a link is asked for a sign of life.

Needs the extra ``inward`` (asyncssh).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tproxy.inward.tunnel.hub import Hub, is_alive
from tproxy.inward.tunnel.names import fits
from tproxy.inward.tunnel.records import APPROVED, Node, Operator

UP = "up"

Json = dict[str, Any]


async def everything(hub: Hub) -> list[Json]:
    """Return what is known of all nodes."""
    return [*await asyncio.gather(*(_of(hub, each) for each in hub.store.all(Node)))]


async def visible(hub: Hub, operator: Operator) -> list[Json]:
    """Return what an operator may know of nodes, and needs to reach them."""
    nodes = [
        each for each in hub.store.all(Node) if each.state == APPROVED and fits(each.name, operator.nodes)
    ]
    found = []
    for node, said in zip(nodes, await asyncio.gather(*(_of(hub, each) for each in nodes)), strict=True):
        ports = {each.name: each.port for each in hub.policy().used_by(operator, node.name)}
        said["offers"] = {name: ports[name] for name in said["offers"] if name in ports}
        found.append(said | {"login": operator.login, "host_keys": node.host_keys})
    return found


async def _of(hub: Hub, node: Node) -> Json:
    link = hub.links.get(node.name)
    begun = time.monotonic()
    state, delay = node.state, None
    if state == APPROVED:
        state = hub.offline(node.name)
        if link is not None and await is_alive(link):
            state, delay = UP, round((time.monotonic() - begun) * 1000, 1)
        elif link is not None:
            state = "does not answer"
    elif node.reason:
        state = f"{state}: {node.reason}"
    return {
        "name": node.name,
        "state": state,
        "milliseconds": delay,
        "address": link.address if link else "",
        "since": round(link.since) if link else None,
        "offers": sorted(link.offers) if link else [],
        "streams": len(link.streams) if link else 0,
    }

"""The hops of a route that leads to a node, by a stream as HAProxy sends it. Raises TproxyError."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

from tproxy import proxy_protocol
from tproxy.config.routes import RouteEntry
from tproxy.inward.maps import NODES_SOCKET
from tproxy.operations.route_hops import BAD, GOOD, Hop
from tproxy.process import inward_socket
from tproxy.proxy_protocol import OF_PROBE, UNIQUE_ID

# Seconds for the gateway's answer: as long as a node has to open a channel, and a guest to accept.
PATIENCE = 25.0


def hops(id_: str, entry: RouteEntry, path: str) -> Iterator[Hop]:
    """Yield the hops of a route of the gateway's file at ``path``, up to the first one that is bad."""
    port = next(port for each, port in entry.parts if each == id_)
    target = f"network {entry.network}" if entry.network else f"port {port}"
    yield Hop("entry", GOOD, f"line {entry.line} of {path}: node {entry.node}, {target}")
    if 0 < entry.expires <= time.time():
        yield Hop("entry", BAD, "it has expired")
        return
    place = f"{inward_socket.directory()}/{NODES_SOCKET}"
    if not os.path.exists(place):
        yield Hop(NODES_SOCKET, BAD, "no gateway for tunnels is running", "tproxy tunnel serve")
        return
    began = time.monotonic()
    try:
        verdict = _verdict(place, id_)
    except OSError as error:
        yield Hop(NODES_SOCKET, BAD, f"{place}: {error.strerror or error}", "tproxy tunnel serve")
        return
    yield Hop(NODES_SOCKET, GOOD, place)
    spent = (time.monotonic() - began) * 1000
    where = f"guest of {entry.node}" if entry.network else entry.node
    if verdict == "connected":
        yield Hop("node", GOOD, f"{where} accepts, after {spent:.1f} ms")
    else:
        yield Hop("node", BAD, f"{where}: {verdict or 'ended without an answer'} ({spent:.0f} ms)")


def _verdict(place: str, id_: str) -> str:
    """Return what the gateway, or the node's worker, says. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(place)
        values = {UNIQUE_ID: id_, OF_PROBE: "route test"}
        stream.sendall(proxy_protocol.encode(("127.0.0.1", 1), ("127.0.0.1", 1), values))
        return stream.recv(500).decode(errors="replace").strip()

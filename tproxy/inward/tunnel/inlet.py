"""Streams for routes: HAProxy connects to a UNIX socket, and says by a PROXY header which route is meant.

Needs the extra ``inward`` (asyncssh). A route leads to a port that a node offers, or by a node's ``in.sock``
to a guest there. HAProxy can name ids only; what they lead to is the configuration's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tproxy import proxy_protocol
from tproxy.errors import ProtocolError
from tproxy.inward.tunnel.enrolment import Refused
from tproxy.inward.tunnel.hub import Caller, Hub
from tproxy.inward.tunnel.names import IN, Target
from tproxy.inward.tunnel.streams import End
from tproxy.proxy_protocol import OF_PROBE, UNIQUE_ID

_PATIENCE = 10.0  # seconds for the header

_log = logging.getLogger("tproxy.tunnel")


class RouteTarget(NamedTuple):
    """Where a route leads: a node, and its port there; 0 for a guest, by the node's in.sock."""

    node: str
    port: int = 0
    with_header: bool = False  # whether the port is told the client's address
    expires: int = 0  # seconds since 1970; 0: never

    def offer(self, hub: Hub) -> Target | None:
        name = hub.policy().offer_at(self.node, self.port) if self.port else IN
        return Target(self.node, name) if name else None


Routes = Callable[[], Mapping[str, RouteTarget]]


class Inlet:
    """Accepts streams for routes."""

    def __init__(self, hub: Hub, routes: Routes) -> None:
        self._hub, self._routes = hub, routes
        self._caller = Caller("routes", "routes", "", "", None)

    async def listen(self, sock: Any) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(lambda: _Arrival(self), sock=sock)

    async def serve(self, arrival: _Arrival, header: proxy_protocol.Header, raw: bytes) -> None:
        """Lead a stream to where its route leads, or end it."""
        route = header.values.get(UNIQUE_ID, "")
        target = self._routes().get(route)
        if target is not None and 0 < target.expires <= time.time():
            target = None
        offered = target.offer(self._hub) if target is not None else None
        probed = OF_PROBE in header.values
        try:
            if target is None or offered is None:
                raise self._hub.refuse(
                    self._caller, "no route, or nothing is offered there", route=route[:100]
                )
            if not self._hub.policy().may_route(*offered):
                raise self._hub.refuse(self._caller, f"routes may not lead to {offered.path}", route=route)
            if target.with_header or not target.port:
                arrival.push_back(raw)
            if probed and target.port:
                (await self._hub.open(self._caller, offered)).close()
                arrival.say("connected")
            else:
                await self._hub.open(self._caller, offered, arrival)
        except Refused as refusal:
            _log.info("route %s: %s", route[:100], refusal)
            arrival.say(str(refusal) if probed else "")


class _Arrival(End):
    """A stream whose header is read. It becomes the end of a stream like any other."""

    def __init__(self, inlet: Inlet) -> None:
        super().__init__()
        self._inlet = inlet
        self._data = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, transport.abort)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if self._task is not None:
            super().data_received(data)
            return
        self._data += data
        try:
            if len(self._data) < proxy_protocol.START:
                return
            size = proxy_protocol.START + proxy_protocol.length(self._data[: proxy_protocol.START])
            if len(self._data) < size:
                return
            header = proxy_protocol.decode(self._data[:size])
        except ProtocolError as error:
            _log.warning("a stream for no route: %s", error)
            self.transport.abort()
            return
        self._timer.cancel()
        self.transport.pause_reading()
        raw, rest = self._data[:size], self._data[size:]
        self._data = b""
        self.push_back(rest)
        self._task = asyncio.ensure_future(self._inlet.serve(self, header, raw))

    def eof_received(self) -> bool:
        if self._task is None:
            return False
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(error)

    def say(self, line: str) -> None:
        """Answer a probe, and end."""
        if line:
            self.transport.write(f"{line}\n".encode())
        self.transport.close()

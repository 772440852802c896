"""Who calls: from squid's headers on squid's own port, or from a PROXY header on the guests' port.

A header that a client sends counts nowhere else. squid's port is for squid alone: there a client has to show
the certificate that only squid has. On the guests' port, connections are accepted from this host's own relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from tproxy import proxy_protocol
from tproxy.egress.layout import CALLER_HEADERS
from tproxy.egress.model import Caller
from tproxy.errors import ProtocolError

# Seconds that a connection may take to say who is calling.
HEADER_PATIENCE = 10.0


def caller_of_squid(headers: Mapping[str, str]) -> Caller:
    """Return who squid says is calling. Values are percent-encoded UTF-8; "-" means that there is none."""
    found = {}
    for header, name in CALLER_HEADERS.items():
        text = unquote(headers.get(header, ""), errors="replace")
        found[name] = "" if text == "-" else text
    return Caller(**found)


class ProxyHeader(asyncio.Protocol):
    """Reads the PROXY header of a connection, and hands the connection over to an HTTP protocol.

    A connection that begins otherwise is closed without an answer.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], known: Callable[[asyncio.Transport, Caller], None]
    ) -> None:
        self._make, self._known = make, known
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(HEADER_PATIENCE, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._data += data
        try:
            if len(self._data) < proxy_protocol.START:
                if not proxy_protocol.SIGNATURE.startswith(
                    bytes(self._data[: len(proxy_protocol.SIGNATURE)])
                ):
                    raise ProtocolError("this is no header of the PROXY protocol")
                return
            end = proxy_protocol.START + proxy_protocol.length(bytes(self._data[: proxy_protocol.START]))
            if len(self._data) < end:
                return
            caller = Caller.of_header(proxy_protocol.decode(bytes(self._data[:end])))
        except ProtocolError:
            self._transport.abort()
            return
        if self._timer is not None:
            self._timer.cancel()
        protocol, rest = self._make(), bytes(self._data[end:])
        self._known(self._transport, caller)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

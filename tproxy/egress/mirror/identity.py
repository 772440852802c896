"""Who calls: from squid's headers on squid's own port, or from a PROXY header on the guests' port.

A header that a client sends counts nowhere else. squid's port is for squid alone: there a client has to show
the certificate that only squid has. On the guests' port, connections are accepted from this host's own relay.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from tproxy import proxy_protocol
from tproxy.egress.layout import CALLER_HEADERS
from tproxy.egress.model import Caller
from tproxy.errors import ProtocolError

# Seconds that a connection may take to say who is calling.
HEADER_PATIENCE = 10.0

# The answer to a connection of a guest that has as many as it may (RFC 6585, 4).
TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: text/plain\r\nContent-Length: 50\r\n"
    b"Connection: close\r\n\r\nthis guest has as many connections as it may have\n"
)


def caller_of_squid(headers: Mapping[str, str]) -> Caller:
    """Return who squid says is calling. Values are percent-encoded UTF-8; "-" means that there is none."""
    found = {}
    for header, name in CALLER_HEADERS.items():
        text = unquote(headers.get(header, ""), errors="replace")
        found[name] = "" if text == "-" else text
    return Caller(**found)


# User ids of tproxy's workers: this and the process id (tproxy/kernel/privileges.py).
WORKERS = 1_900_000_000


def peer_user(transport: asyncio.Transport) -> int | None:
    """Return the user at the other end of a connection within this host; None if it is not here.

    /proc/net/tcp lists every socket with its owner (proc(5)); addresses are in the host's byte order.
    """
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not peer or not own or ":" in peer[0]:
        return None
    wanted = f"{_hexadecimal(peer)} {_hexadecimal(own)}"
    with open("/proc/net/tcp") as file:
        for line in file:
            fields = line.split()
            if f"{fields[1]} {fields[2]}" == wanted:
                return int(fields[7])
    return None


def _hexadecimal(address: tuple[str, int]) -> str:
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


def may_say_who_calls(user: int | None) -> bool:
    """Tell whether this user's PROXY headers are believed: root's and those of tproxy's workers."""
    return user is not None and (user == 0 or user >= WORKERS)


class ProxyHeader(asyncio.Protocol):
    """Reads the PROXY header of a connection, and hands the connection over to an HTTP protocol.

    A connection that begins otherwise is closed without an answer. ``known`` gets the caller, and returns
    whether the caller may have this connection.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], known: Callable[[asyncio.Transport, Caller], bool]
    ) -> None:
        self._make, self._known = make, known
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not may_say_who_calls(peer_user(transport)):
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(HEADER_PATIENCE, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
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
        if not self._known(self._transport, caller):
            self._transport.write(TOO_MANY)
            self._transport.close()
            return
        protocol, rest = self._make(), bytes(self._data[end:])
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

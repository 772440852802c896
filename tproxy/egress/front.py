"""Takes TLS connections of guests that know of no proxy, and passes them to squid by their server name.

The daemon sends a PROXY header, and the guest's ClientHello follows. The front reads the server name from
that (RFC 8446, 4.1.2; RFC 6066, 3), sends the header and ``CONNECT name:443`` to squid's proxy port, and then
copies bytes. squid judges the CONNECT and every request, as for guests that use the proxy. The front exists
because squid's own port for such connections takes no PROXY header.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tproxy.config.values import HOST_NAME
from tproxy.egress import streams
from tproxy.egress.model import Caller
from tproxy.errors import ProtocolError
from tproxy.log.lazy import logger

log = logger(__name__)

# A ClientHello with post-quantum keys has some 2 kB; this is what one TLS record can hold (RFC 8446, 5.1).
MOST_HELLO = 16384
PATIENCE = 10.0  # seconds for header and ClientHello, and for squid's answer
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0

# An alert that says "unrecognized_name" (RFC 8446, 6): the client's message is better than that of a reset.
ALERT = bytes((21, 3, 3, 0, 2, 2, 112))


class Incomplete(Exception):
    """The bytes so far are the beginning of a ClientHello."""


def server_name(data: bytes) -> str:
    """Return the server name of a ClientHello in lower case.

    Raises Incomplete, or ProtocolError if it has none.
    """
    hello, at = b"", 0
    while len(hello) < 4 or len(hello) < 4 + int.from_bytes(hello[1:4], "big"):
        if len(data) < at + 5:
            raise Incomplete
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            raise ProtocolError("this is no TLS")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not size or len(hello) + size > MOST_HELLO:
            raise ProtocolError("a ClientHello of this length is not accepted")
        if len(data) < at + 5 + size:
            raise Incomplete
        hello += data[at + 5 : at + 5 + size]
        at += 5 + size
    if hello[0] != _CLIENT_HELLO:
        raise ProtocolError("this is no ClientHello")
    try:
        return _name(_Reader(hello[4 : 4 + int.from_bytes(hello[1:4], "big")]))
    except IndexError:
        raise ProtocolError("a ClientHello is broken") from None


def _name(reader: _Reader) -> str:
    reader.take(2 + 32)  # version and random
    reader.vector(1)  # session
    reader.vector(2)  # ciphers
    reader.vector(1)  # compression
    extensions = _Reader(reader.vector(2))
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind != _SERVER_NAME:
            continue
        names = _Reader(_Reader(body).vector(2))
        while names.left:
            kind, name = names.number(1), names.vector(2)
            if kind == _HOST_NAME:
                text = name.decode("ascii", "replace").lower()
                if not re.fullmatch(HOST_NAME, text):
                    raise ProtocolError("the server name is no host name")
                return text
    raise ProtocolError("a ClientHello has no server name")


class _Reader:
    """Takes numbers and vectors from bytes. Raises IndexError when there are not enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def left(self) -> int:
        return len(self._data)

    def take(self, size: int) -> bytes:
        if len(self._data) < size:
            raise IndexError
        found, self._data = self._data[:size], self._data[size:]
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


class Front:
    """Serves connections; ``proxy`` is the address of squid's port that takes PROXY headers.

    ``most`` says how many open connections a caller may have; 0 means no limit.
    """

    def __init__(self, proxy: tuple[str, int], most: Callable[[Caller], int] = lambda caller: 0) -> None:
        self._proxy, self._most = proxy, most
        self._open: Counter[str] = Counter()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            header, caller = await asyncio.wait_for(_header(reader), PATIENCE)
            with self._counted(caller):
                await self._serve(header, reader, writer)
        except (ProtocolError, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.info("a connection is not passed on: %s", str(error) or "the peer is too slow")
        finally:
            await streams.close(writer)

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        """Count a connection while it is open. Raises ProtocolError if the guest has as many as it may."""
        guest, most = caller.guest, self._most(caller)
        if most and self._open[guest] >= most:
            raise ProtocolError(f"guest {guest!a} has {most} connections already, as many as it may")
        self._open[guest] += 1
        try:
            yield
        finally:
            self._open[guest] -= 1
            if not self._open[guest]:
                del self._open[guest]

    async def _serve(self, header: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello, name = await asyncio.wait_for(_hello(reader), PATIENCE)
        opened = await asyncio.wait_for(self._connect(header, name), PATIENCE)
        if opened is None:
            writer.write(ALERT)
            return
        proxy_reader, proxy_writer = opened
        proxy_writer.write(hello)
        try:
            await asyncio.gather(streams.copy(reader, proxy_writer), streams.copy(proxy_reader, writer))
        finally:
            await streams.close(proxy_writer)

    async def _connect(
        self, header: bytes, name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection through squid; None when the policy denies the host."""
        reader, writer = await asyncio.open_connection(*self._proxy)
        try:
            writer.write(header + f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
        except BaseException:
            await streams.close(writer)
            raise
        if answer.split(b" ", 2)[1:2] == [b"200"]:
            return reader, writer
        await streams.close(writer)
        return None


async def _header(reader: asyncio.StreamReader) -> tuple[bytes, Caller]:
    """Read the PROXY header. Return it, and who it says is calling."""
    data, header = await streams.read_header(reader)
    if header.source is None:
        raise ProtocolError("a PROXY header names no caller")
    return data, Caller.of_header(header)


async def _hello(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Read the ClientHello. Return it, with the server name."""
    hello = b""
    while True:
        data = await reader.read(streams.CHUNK)
        if not data:
            raise ProtocolError("the connection ended before a ClientHello")
        hello += data
        try:
            return hello, server_name(hello)
        except Incomplete:
            continue


async def start(
    address: str, port: int, proxy: tuple[str, int], most: Callable[[Caller], int]
) -> asyncio.Server:
    """Listen, and serve connections from now on."""
    return await asyncio.start_server(Front(proxy, most).handle, address, port, backlog=1024)

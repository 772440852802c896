"""Reads the header of a connection of asyncio, and copies bytes between two."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tproxy import proxy_protocol

CHUNK = 65536


async def read_header(reader: asyncio.StreamReader) -> tuple[bytes, proxy_protocol.Header]:
    """Read a PROXY header. Return its bytes, and what it says.

    Raises ProtocolError, and IncompleteReadError at the end of the connection.
    """
    start = await reader.readexactly(proxy_protocol.START)
    data = start + await reader.readexactly(proxy_protocol.length(start))
    return data, proxy_protocol.decode(data)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction, and pass its end on; the other one goes on."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever state it is in."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()

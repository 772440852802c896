"""The daemon's part in tests: takes connections, and passes each on behind a PROXY header.

Arguments: port to listen on, port of the proxy, the caller's address, and values of the header as NAME=TEXT.
"""

from __future__ import annotations

import asyncio
import sys

from tproxy import proxy_protocol
from tproxy.egress.model import Caller

LISTEN, TARGET, ADDRESS = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
CALLER = Caller(**dict(each.split("=", 1) for each in sys.argv[4:]))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        proxy_reader, proxy_writer = await asyncio.open_connection("127.0.0.1", TARGET)
    except OSError:
        writer.close()
        return
    proxy_writer.write(proxy_protocol.encode((ADDRESS, 40000), ("169.254.16.9", TARGET), CALLER.values))
    await asyncio.gather(copy(reader, proxy_writer), copy(proxy_reader, writer))
    proxy_writer.close()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", LISTEN)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())

"""The control socket of the running gateway: commands on the same host ask it for what no file has.

A question is a line, and the answer is JSON. Only root, and the gateway's own user, can connect: the socket
is in the directory of the state.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tproxy.errors import NotRunning, ProcessError

NAME = "control.sock"
_PATIENCE = 60.0  # seconds; a sign of life of each node takes some

Answer = Callable[[], Awaitable[Any]]


async def listen(directory: Path, answers: dict[str, Answer]) -> asyncio.Server:
    """Answer questions at the socket."""
    path = directory / NAME
    with suppress(FileNotFoundError):
        path.unlink()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, asyncio.TimeoutError):
            question = (await asyncio.wait_for(reader.readline(), _PATIENCE)).decode().strip()
            if question in answers:
                writer.write(json.dumps(await answers[question]()).encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path), limit=4096)
    os.chmod(path, 0o600)
    return server


def ask(directory: Path, question: str) -> Any:
    """Return the gateway's answer. Raises NotRunning, or ProcessError."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(str(directory / NAME))
            sock.sendall(f"{question}\n".encode())
            with sock.makefile("rb") as file:
                return json.loads(file.read())
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning("no gateway for tunnels is running: tproxy tunnel serve") from None
        except (OSError, ValueError) as error:
            raise ProcessError(f"the gateway does not answer: {error}") from None

"""Writes events durably, for the mirror and for squid's helper: what cannot be recorded is not served.

Theory of operation. A line is durable after fdatasync(2), which takes milliseconds on a disk. So all who wait
for one share the next: while a thread writes and syncs, new events gather, and go together.

squid's helper runs as squid's user, who must not be able to change the ledger. It sends its events through a
UNIX socket that only that user and root may open, a line of JSON with a list of events each time, and gets
a line back: "ok", or why they are not in the ledger (``sending`` is the other side).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tproxy.egress.ledger.chain import Ledger, LedgerError
from tproxy.egress.ledger.entries import Event
from tproxy.egress.streams import close
from tproxy.errors import to_ascii

MOST = 1 << 24  # bytes of one line: events of some thousand requests

Waiting = tuple[Sequence[Event], "asyncio.Future[None]"]


class Recorder:
    """Writes to the ledger for all tasks of an event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Waiting] = []
        self._work: asyncio.Task[None] | None = None

    async def record(self, *events: Event) -> None:
        """Return when these events are on the disk. Raises LedgerError."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, done))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write_all())
        await done

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            errors = await asyncio.to_thread(self._write, [events for events, _ in group])
            for (_, done), error in zip(group, errors, strict=True):
                if done.done():  # cancelled: the connection has ended
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def _write(self, group: list[Sequence[Event]]) -> list[LedgerError | None]:
        """Write the events of all who wait. Return why each one's are not on the disk; None if they are."""
        errors: list[LedgerError | None] = []
        for events in group:
            try:
                self._ledger.append(*(each.as_json() for each in events))
                errors.append(None)
            except LedgerError as error:
                errors.append(error)
        try:
            self._ledger.sync()
        except LedgerError as error:
            return [error] * len(group)
        return errors


async def serve(recorder: Recorder, path: Path, user: int) -> asyncio.Server:
    """Take events on a UNIX socket that only this user and root may open."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(await _answer(recorder, line))
                await writer.drain()
        except (OSError, ValueError):  # the peer has gone, or its line has no end
            pass
        finally:
            await close(writer)

    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(handle, str(path), limit=MOST)
    finally:
        os.umask(before)
    os.chown(path, user, -1)
    return server


async def _answer(recorder: Recorder, line: bytes) -> bytes:
    try:
        await recorder.record(*(Event(**each) for each in json.loads(line)))
    except LedgerError as error:
        return f"{to_ascii(error)}\n".encode()
    except (ValueError, TypeError):
        return b"these are no events\n"
    return b"ok\n"

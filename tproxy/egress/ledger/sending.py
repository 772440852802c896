"""Sends events to the ledger of the mirror's process, and waits until they are on the disk (``recorder``)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tproxy.egress.ledger.chain import LedgerError
from tproxy.egress.ledger.entries import Event

PATIENCE = 5.0  # seconds: the mirror may be starting again
_PAUSE = 0.05  # seconds between attempts


class Sender:
    """A connection to the ledger, which is opened again when it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peer: socket.socket | None = None
        self._is_down = False

    def record(self, events: Sequence[Event]) -> None:
        """Return when these events are on the disk. Raises LedgerError.

        While nobody takes events, only the first call waits: requests of guests would queue up for nothing.
        """
        data = json.dumps([each.as_json() for each in events]).encode() + b"\n"
        until = time.monotonic() + (0 if self._is_down else PATIENCE)
        while True:
            try:
                answer = self._ask(data)
                self._is_down = False
                break
            except OSError as error:
                self.close()
                if time.monotonic() >= until:
                    self._is_down = True
                    raise LedgerError(f"nobody writes the ledger: {error}") from error
                time.sleep(_PAUSE)
        if answer != "ok":
            raise LedgerError(answer)

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _ask(self, data: bytes) -> str:
        if self._peer is None:
            self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._peer.settimeout(PATIENCE)
            self._peer.connect(str(self._path))
        self._peer.sendall(data)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._peer.recv(4096)
            if not piece:
                raise ConnectionResetError("the mirror has ended the connection")
            answer += piece
        return answer.decode("ascii", "replace").rstrip("\n")

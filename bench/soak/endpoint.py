"""The endpoint of the soak: ``python -m bench.soak.endpoint ADDRESS PORT``; see exchange.py."""

from __future__ import annotations

import socket
import socketserver
import struct
import sys
from contextlib import suppress
from typing import Any

from bench.soak.exchange import Damaged, answer


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        # What ends too early is an error that the guest sees too.
        with suppress(OSError, Damaged):
            while answer(self.request):
                pass
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        # When this program is killed, guests must see a reset, so that an end of file is always ours. What
        # is accepted inherits this.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super().server_bind()

    def shutdown_request(self, request: Any) -> None:
        # The inherited one sends FIN before it closes, after an error too.
        self.close_request(request)


if __name__ == "__main__":
    with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()

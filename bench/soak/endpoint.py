"""The endpoint of the soak: ``python -m bench.soak.endpoint ADDRESS PORT``; see exchange.py."""

from __future__ import annotations

import socketserver
import sys
from contextlib import suppress

from bench.soak.exchange import Damaged, answer


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        # What ends too early is an error that the guest sees too, or a guest's program that was ended.
        with suppress(OSError, Damaged):
            while answer(self.request):
                pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()

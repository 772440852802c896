"""An endpoint for the picture, which sends as many bytes as it is asked for: ``given.py ADDRESS PORT``."""

from __future__ import annotations

import random
import socketserver
import sys
import time


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        wanted = int(self.rfile.readline() or b"0")
        time.sleep(random.expovariate(20))
        self.wfile.write(b"x" * wanted)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

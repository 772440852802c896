"""An endpoint that sends and never reads: ``ticking_endpoint.py ADDRESS PORT``.

It sends ``tick`` twenty times a second. Prints ``ready`` when it listens.
"""

from __future__ import annotations

import socket
import sys
import threading
import time


def serve(sock: socket.socket) -> None:
    with sock:
        while True:
            sock.sendall(b"tick ")
            time.sleep(0.05)


def main() -> None:
    address, port = sys.argv[1:]
    with socket.create_server((address, int(port))) as listener:
        print("ready", flush=True)
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()


main()

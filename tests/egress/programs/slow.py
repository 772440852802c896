"""Opens connections, sends the beginning of something on each, and neither reads nor goes on.

Arguments: port, number of connections, and the bytes in hexadecimal. It stays until it is ended.
"""

from __future__ import annotations

import signal
import socket
import sys

peers = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for peer in peers:
    peer.sendall(bytes.fromhex(sys.argv[3]))
print("ready", flush=True)
signal.pause()

"""An endpoint that echoes, to be stopped and killed: ``stoppable_echo.py PIDFILE BACKLOG ADDRESS PORT``.

ADDRESS can be the path of a UNIX socket, which is made anew; PORT says nothing then. PIDFILE gets its process
id. It prints ``ready`` when it listens. In PIDFILE.served it counts, one byte for each, the connections that
it accepted.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sys
from contextlib import suppress
from pathlib import Path


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Server | UnixServer)
        os.write(self.server.served, b".")
        with suppress(OSError):
            while block := self.request.recv(1 << 16):
                self.request.sendall(block)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    served: int  # descriptor of a file


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    served: int


def listen(address: str, port: int, backlog: int) -> Server | UnixServer:
    if address.startswith("/"):
        Path(address).unlink(missing_ok=True)
        UnixServer.request_queue_size = backlog
        return UnixServer(address, Echo)
    Server.request_queue_size = backlog
    Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Server((address, port), Echo)


def main() -> None:
    pid_file, backlog, address, port = sys.argv[1:]
    with listen(address, int(port), int(backlog)) as server:
        server.served = os.open(f"{pid_file}.served", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        Path(pid_file).write_text(str(os.getpid()))
        print("ready", flush=True)
        server.serve_forever()


main()

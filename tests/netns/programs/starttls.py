"""A server that speaks first, and changes to TLS when it is told to, as SMTP servers do (RFC 3207).

Arguments: address, port, and a PEM file. Prints ``ready`` when it listens. Serves one client after another.
"""

from __future__ import annotations

import socket
import ssl
import sys


def serve(client: socket.socket, context: ssl.SSLContext) -> None:
    """Greet, change to TLS, and answer NOOP and QUIT."""
    client.sendall(b"220 guest\r\n")
    stream = client.makefile("rb")
    for line in stream:
        command = line.split()[0].upper() if line.split() else b""
        if command == b"STARTTLS":
            client.sendall(b"220 go ahead\r\n")
            client = context.wrap_socket(client, server_side=True)
            serve_inside(client)
            return
        client.sendall(b"250-guest\r\n250 STARTTLS\r\n" if command == b"EHLO" else b"250 ok\r\n")


def serve_inside(client: socket.socket) -> None:
    for line in client.makefile("rb"):
        client.sendall(b"250 ok, inside TLS\r\n")
        if line.upper().startswith(b"QUIT"):
            return


def main(address: str, port: str, pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server((address, int(port))) as server:
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                serve(client, context)


if __name__ == "__main__":
    main(*sys.argv[1:])

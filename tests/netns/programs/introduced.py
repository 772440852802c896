"""An endpoint that gets PROXY headers: ``introduced.py ADDRESS PORT``.

It prints ``ready`` when it listens, and for each connection two lines of JSON: the header and the bytes
behind it, as one recv(2) returns them; then, when the guest has said all, the bytes that came later, and how
the connection ended (``eof``, or the error).
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading

from tproxy.proxy_protocol import START, decode, length


def talk(sock: socket.socket) -> None:
    data = sock.recv(1 << 16)
    if not data:  # the guest has reset the connection before anything was sent
        tell({"values": {}, "data": ""})
        return
    end = START + length(data[:START])
    header = decode(data[:end])
    tell(
        {
            "source": header.source,
            "destination": header.destination,
            "values": {f"{kind:#04x}": text for kind, text in header.values.items()},
            "data": data[end:].decode(),
        }
    )
    rest, how = b"", "eof"
    try:
        while more := sock.recv(1 << 16):
            rest += more
        sock.sendall(b"hello")
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, str(error))
    tell({"rest": rest.decode(), "end": how})
    sock.close()


def tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    address, port = sys.argv[1:]
    listener = socket.create_server((address, int(port)))
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=talk, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()

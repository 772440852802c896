"""Dials guests from the bridge's namespace, for workers, and passes each socket on while it connects.

A worker asks on its data channel (``wire.Dial``), and gets the socket right after connect(2) has begun
(``wire.Dialled``). The relay keeps nothing of it: the worker waits for the guest, and owns the connection. A
socket stays in the namespace in which it was made. The guest sees the service address.

Which addresses answer is not decided here, as a relay and a worker may be taken over: the wall lets nothing
out to, and no answer in from, what is no route's target (bridge.wall).
"""

from __future__ import annotations

import errno
import socket

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6
from tproxy.kernel import tcp
from tproxy.relay import wire
from tproxy.relay.channel import send

# <linux/in.h>: bind(2) chooses no port, so that connect(2) can share one between targets.
_IP_BIND_ADDRESS_NO_PORT = 24


def answer(channel: socket.socket, asked: wire.Dial, link: str) -> None:
    """Dial, and send the worker the socket; ``link`` is the one that leads to the guests.

    Raises OSError (BlockingIOError) when the worker cannot take an answer; then it has to ask again.
    """
    try:
        sock = _begin(asked, link)
    except OSError as error:
        send(channel, wire.Dialled(asked.number, error.errno or errno.EINVAL))
        return
    with sock:
        send(channel, wire.Dialled(asked.number, 0), [sock.fileno()])


def _begin(asked: wire.Dial, link: str) -> socket.socket:
    """Return a socket that connects to the guest. Raises OSError."""
    ours = SERVICE_ADDRESS_IPV6 if ":" in asked.address else SERVICE_ADDRESS
    sock = socket.socket(tcp.family(asked.address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        tcp.set_options(sock, near=True)  # keep-alive comes with the worker's first sweep
        tcp.reset_on_close(sock)
        # Also where another program made the namespace, and there is no route; and an address of the link
        # needs it. Allowed from Linux 5.7 on.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((ours, 0))
        number = sock.connect_ex((asked.address, asked.port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, "")
    except OSError:
        sock.close()
        raise
    return sock

"""Questions to the running daemon: one JSON line there, one JSON document back (``answering`` is its side).

The socket lies in the instance's directory, which only root can enter.
"""

from __future__ import annotations

import json
import socket
import time

from tproxy.errors import NotRunning, ProcessError
from tproxy.typed import Any

SOCKET = "control.sock"

Json = dict[str, Any]


def ask(directory: str, request: Json, timeout: float) -> Json:
    """Send one request and wait ``timeout`` seconds for the answer.

    Raises NotRunning when no daemon is there, and ProcessError when it does not answer or says that
    something is wrong.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, f"{directory}/{SOCKET}", timeout)
            sock.sendall(json.dumps(request).encode() + b"\n")
            data = b"".join(iter(lambda: sock.recv(256 * 1024), b""))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning("the daemon is not running") from None
        except TimeoutError:
            raise ProcessError(f"the daemon did not answer within {timeout:g} s") from None
        except OSError as error:
            raise ProcessError(f"the daemon went away: {error.strerror}") from None
    try:
        answer: Json = json.loads(data)
    except ValueError:  # nothing, or only a part of it
        raise ProcessError("the daemon went away without an answer") from None
    if "error" in answer:
        raise ProcessError(answer["error"])
    return answer


def _connect(sock: socket.socket, path: str, timeout: float) -> None:
    """Connect; while more ask than may wait (listen(2)), wait as well: the daemon is busy, and not dead."""
    end = time.monotonic() + timeout
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.01)

"""A guest's connection that stays open, to an endpoint that echoes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

from tproxy.lab.hypervisor import Guest
from tproxy.model import SERVICE_ADDRESS

_TALKER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    for line in sys.stdin:
        sock.sendall(line.encode())
        print(sock.recv(100).decode(), end='', flush=True)
"""


class Talk:
    """A guest's connection to the echo that stays open."""

    def __init__(self, guest: Guest) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._process = guest.popen(sys.executable, "-c", _TALKER, SERVICE_ADDRESS, "80", **options)
        assert self.say("hello") == "hello"

    def say(self, words: str) -> str:
        """What comes back; empty when the connection has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

"""A guest's connection that stays open, to an endpoint that echoes."""

from __future__ import annotations

import subprocess
from contextlib import suppress

from tests.netns.program import program
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Guest


class Talk:
    """A guest's open connection to a service port behind which an endpoint echoes."""

    def __init__(self, guest: Guest, port: int = 80, address: str = SERVICE_ADDRESS) -> None:
        """Connect, and see one answer. Fails the test where that does not work."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._process = guest.popen(*program("talker", address, str(port)), **options)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        assert self.say("hello") == "hello"

    def say(self, words: str) -> str:
        """Send a line and return the answer; it is empty when the connection has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        """Close the connection and wait until the guest's program has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

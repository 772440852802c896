"""A guest that holds connections, as many as a test says (tests/netns/programs/visitor.py)."""

from __future__ import annotations

import json
import subprocess

from tests.netns.program import program
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest


class Visitor:
    """Connections of a guest to a service port behind which an endpoint echoes."""

    def __init__(self, guest: Guest, port: int) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._process = guest.popen(*program("visitor", SERVICE_ADDRESS, str(port)), **options)

    def open(self, count: int = 1) -> dict[str, int]:
        """Open so many more; return how many were ``served``, and how the others ended."""
        return self._do(f"open {count}")

    def close(self, count: int = 1) -> None:
        self._do(f"close {count}")

    def try_all(self) -> dict[str, int]:
        """Exchange a byte on each connection; return how many were ``served``, and how the others ended."""
        return self._do("try")

    def finish(self) -> None:
        """End the guest's direction of each connection."""
        self._do("finish")

    def _do(self, command: str) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

"""A guest that makes one connection after the other while a test goes on."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Guest


class Asking:
    """Connections to a service port behind which an endpoint echoes, from the start until ``end``."""

    def __init__(self, guest: Guest, port: int) -> None:
        """Start, and return when the first connection has been served."""
        argv = program("asker", SERVICE_ADDRESS, str(port))
        self._process = guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
        self._served = 0
        self.go_on(1)

    def go_on(self, count: int) -> None:
        """Return when so many more connections have been served."""
        wanted = self._served + count
        for _ in eventually():
            assert self._process.stdin is not None
            print(file=self._process.stdin, flush=True)
            self._served = self._report()["served"]
            if self._served >= wanted:
                break

    def end(self) -> list[str]:
        """Ask no more; return how each connection failed that was not served."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        failed: list[str] = self._report()["failed"]
        self._process.wait(PATIENCE)
        return failed

    def _report(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        report: dict[str, Any] = json.loads(self._process.stdout.readline())
        return report

"""Runs all parts as children of one process, and starts those again that end by themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tproxy.console import say
from tproxy.egress.policy.current import Current
from tproxy.egress.policy.reader import load
from tproxy.egress.policy.rules import Policy
from tproxy.egress.service import guard, handover, parts, pause, ports, preparation
from tproxy.egress.squid.authority import peer_certificates
from tproxy.egress.squid.compiler import Surroundings
from tproxy.errors import ProcessError, TproxyError

# The mirror first: squid asks a peer that did not listen at its start nothing for some seconds.
PARTS = (("mirror", "run"), ("run", "squid"), ("run", "front"))
HOSTS = ("run", "hosts")  # only where hypervisors elsewhere use this node

_LOOK = 0.5  # seconds between looks at the policy and the children
_AGAIN = 1.0  # seconds before a part that has ended is started again, as RestartSec= of the units
_END = 15.0  # seconds in which a part has to end

Child = subprocess.Popen[bytes]


def run(root: Path | None) -> None:
    """Run until SIGTERM or SIGINT. Raises TproxyError when a part cannot start the first time.

    At SIGHUP a new squid takes the place of the one that runs, which ends its downloads.
    """
    node = parts.surroundings(root)
    policy = load(node.layout.policy)
    if taken := ports.taken(policy):
        raise ProcessError("; ".join(taken))
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    children = Children(node, got)
    try:
        children.start(policy, ["--root", str(root)] if root else [])
        children.attend()
    finally:
        children.end()
        guard.remove()


class Children:
    """The parts, and squids that end their downloads. ``got`` are the signals that have arrived."""

    def __init__(self, node: Surroundings, got: list[int]) -> None:
        self._node, self._got = node, got
        self._running: dict[str, Child] = {}
        self._commands: dict[str, list[str]] = {}
        self._again: dict[str, float] = {}  # when to start a part that has ended, by the monotonic clock
        self._draining: dict[Child, float] = {}  # since when, by the monotonic clock

    def start(self, policy: Policy, where: list[str]) -> None:
        """Start all parts, each when those before it are ready."""
        peer_certificates(self._node.layout.peer)
        self._node.layout.squid_pid.unlink(missing_ok=True)

        def mirror_listens() -> bool:
            return not ports.is_free("127.0.0.1", policy.listen.mirror)

        for words in (*PARTS, *([HOSTS] if policy.listen.hosts else [])):
            name = words[-1] if words[0] == "run" else words[0]
            self._commands[name] = [sys.executable, "-m", "tproxy", "egress", *words, *where]
            self._start(name)
            if name == "mirror":
                self._wait_for(mirror_listens)
            if name == "squid":
                self._wait_for(self._node.layout.squid_pid.exists)

    def attend(self) -> None:
        """Look after the parts and the policy until this process is told to end."""
        current = Current(self._node.layout.policy)
        seen = current.get()
        while not self._is_told_to_end():
            now = current.get()
            try:
                self._revive(now)
                if now is not seen:
                    seen = now
                    parts.reload_squid(self._node, now)
                if signal.SIGHUP in self._got:
                    self._got.remove(signal.SIGHUP)
                    self._hand_over(now)
            except TproxyError as error:
                say(str(error))
            self._end_drained(now)
            time.sleep(_LOOK)

    def end(self) -> None:
        """End all parts, in order; a squid that ends its downloads at once."""
        for child in self._draining:
            handover.end(child.pid)
        for name, child in self._running.items():
            if child.poll() is None:
                # squid would go on with its downloads at SIGTERM.
                child.send_signal(signal.SIGINT if name == "squid" else signal.SIGTERM)
        until = time.monotonic() + _END
        for child in self._running.values():
            try:
                child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _start(self, name: str) -> None:
        self._running[name] = subprocess.Popen(self._commands[name], start_new_session=True)

    def _revive(self, policy: Policy) -> None:
        """Start parts again that have ended, a while after they did."""
        for name, child in list(self._running.items()):
            if (status := child.poll()) is None:
                continue
            if name not in self._again:
                say(f"{name} has ended with status {status}, and is started again")
                self._again[name] = time.monotonic() + _AGAIN
            elif time.monotonic() >= self._again[name]:
                del self._again[name]
                if name == "squid":
                    self._hand_over(policy)
                else:
                    self._start(name)

    def _hand_over(self, policy: Policy) -> None:
        def start(node: Surroundings) -> None:
            self._draining[self._running["squid"]] = time.monotonic()
            command = preparation.squid_command(node)
            self._running["squid"] = subprocess.Popen(command, start_new_session=True)

        if handover.hand_over(policy, self._node, start, say) is not None:
            say("a new squid takes connections; the one before it ends its downloads")

    def _end_drained(self, policy: Policy) -> None:
        for child, since in list(self._draining.items()):
            if child.poll() is None and handover.is_drained(child.pid, pause.ports(policy), since):
                handover.end(child.pid)
            if child.poll() is not None:
                del self._draining[child]

    def _is_told_to_end(self) -> bool:
        return signal.SIGTERM in self._got or signal.SIGINT in self._got

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._is_told_to_end():
            self._check()
            time.sleep(0.05)

    def _check(self) -> None:
        for name, child in self._running.items():
            if (status := child.poll()) is not None:
                raise ProcessError(f"{name} has ended with status {status}")

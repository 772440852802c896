"""Runs all parts as children of one process, until one of them ends or this process is told to."""

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
from tproxy.egress.service import guard, parts, ports
from tproxy.egress.squid.authority import peer_certificates
from tproxy.errors import ProcessError, TproxyError

# The mirror first: squid asks a peer that did not listen at its start nothing for some seconds.
PARTS = (("mirror", "run"), ("run", "squid"), ("run", "front"))
HOSTS = ("run", "hosts")  # only where hypervisors elsewhere use this node

_LOOK = 0.5  # seconds between looks at the policy and the children
_END = 15.0  # seconds in which a part has to end


def run(root: Path | None) -> None:
    """Run until SIGTERM or SIGINT. Raises TproxyError when a part cannot start, or ends by itself."""
    node = parts.surroundings(root)
    policy = load(node.layout.policy)
    if taken := ports.taken(policy):
        raise ProcessError("; ".join(taken))
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    def mirror_listens() -> bool:
        return not ports.is_free("127.0.0.1", policy.listen.mirror)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    where = ["--root", str(root)] if root else []
    children: dict[str, subprocess.Popen[bytes]] = {}
    current = Current(node.layout.policy)
    try:
        peer_certificates(node.layout.peer)
        for words in (*PARTS, *([HOSTS] if policy.listen.hosts else [])):
            name = words[-1] if words[0] == "run" else words[0]
            command = [sys.executable, "-m", "tproxy", "egress", *words, *where]
            children[name] = subprocess.Popen(command, start_new_session=True)
            if name == "mirror":
                _wait_for(mirror_listens, children, stopped)
            if name == "squid":
                _wait_for((node.layout.run / "squid.pid").exists, children, stopped)
        seen = current.get()
        while not stopped:
            _check(children)
            now = current.get()
            if now is not seen:
                seen = now
                try:
                    parts.reload_squid(node, now)
                except TproxyError as error:
                    say(str(error))
            time.sleep(_LOOK)
    finally:
        _end(children)
        guard.remove()


def _wait_for(
    condition: Callable[[], bool], children: dict[str, subprocess.Popen[bytes]], stopped: list[int]
) -> None:
    while not condition() and not stopped:
        _check(children)
        time.sleep(0.05)


def _check(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, child in children.items():
        if (status := child.poll()) is not None:
            raise ProcessError(f"{name} has ended with status {status}")


def _end(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.terminate()
    until = time.monotonic() + _END
    for child in children.values():
        try:
            child.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

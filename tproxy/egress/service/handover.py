"""Puts a new squid in the place of the one that runs, and lets the old one end its downloads.

Theory of operation. At SIGTERM squid closes its ports, and goes on with what is under way for
``shutdown_lifetime``. So the new one can start at once: it has a slot of its own, "a" or "b", with its
configuration, process id file and cache on disk, and the same logs. ``squid.conf`` and ``squid.pid`` lead to
the slot that takes new connections. New connections wait while nobody listens (``pause``).

squid would stay until the end of that time although nothing is under way any more, so somebody looks, and
ends it (``is_drained``).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from tproxy.egress.policy.rules import Policy
from tproxy.egress.service import guard, pause, ports, preparation
from tproxy.egress.squid.compiler import DRAIN, SLOTS, Surroundings, pid_file
from tproxy.egress.store.durable import point
from tproxy.errors import ProcessError

_LISTEN = "0A"  # the state of a socket in /proc/net/tcp, proc(5)

_PATIENCE = 20.0  # seconds for a start of squid, or for its end at SIGINT


def current(node: Surroundings) -> Surroundings:
    """Return the node with the slot that takes new connections."""
    try:
        name = os.readlink(node.layout.squid_pid)
    except OSError:
        return node
    return replace(node, slot="b" if name == pid_file(replace(node, slot="b")).name else "a")


def other(node: Surroundings) -> Surroundings:
    return replace(node, slot=next(slot for slot in SLOTS if slot != node.slot))


def process(node: Surroundings) -> int | None:
    """Return the process of this slot's squid; None if there is none."""
    try:
        pid = int(pid_file(node).read_text())
        return pid if psutil.Process(pid).name() == "squid" else None
    except (OSError, ValueError, psutil.Error):
        return None


def take(node: Surroundings) -> None:
    """Let this slot be the one that takes new connections."""
    point(node.layout.squid_conf, preparation.configuration(node).name)
    point(node.layout.squid_pid, pid_file(node).name)


def hand_over(
    policy: Policy, node: Surroundings, start: Callable[[Surroundings], None], show: Callable[[str], None]
) -> int | None:
    """Start a squid, and have the one that runs end. Return the process of that; None if none ran.

    ``start`` starts the squid of a slot; ``show`` gets lines about the authority. Raises TproxyError, and the
    old one goes on, when squid would refuse the configuration.
    """
    old = current(node)
    pid, new = process(old), other(old)
    end(process(new))  # still draining from the time before
    for line in preparation.prepare(policy, new):
        show(line)
    preparation.check(new)
    guard.load(policy, new.user)
    with pause.pause(pause.ports(policy)):
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            _wait(lambda: not _listening(policy), "the old squid does not close its ports")
        start(new)
        _wait(lambda: _listening(policy) and process(new) is not None, "squid does not listen")
        take(new)
    return pid


def reconfigure(policy: Policy, node: Surroundings) -> None:
    """Have the squid of this slot read its configuration again. Raises ProcessError if it does not run."""
    pid = process(node)
    if pid is None:
        raise ProcessError("squid is not running")
    before = _listeners(pid)
    with pause.pause({*pause.ports(policy), *(port for port, _ in before)}):
        os.kill(pid, signal.SIGHUP)
        wanted = pause.ports(policy)
        _wait(lambda: wanted <= {port for port, _ in _listeners(pid) - before}, "squid does not listen again")


def _listeners(pid: int) -> set[tuple[int, int]]:
    """Return port and inode of each socket on which a process listens. Those that it opens again differ."""
    own = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                own.add(int(target[8:-1]))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[9]) in own:
                found.add((int(fields[1].rpartition(":")[2], 16), int(fields[9])))
    return found


def end(pid: int | None) -> None:
    """End a squid now, with all that is under way."""
    if pid is None:
        return
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        try:
            psutil.Process(pid).wait(_PATIENCE / 2)
            return
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue


def is_drained(pid: int, among: Collection[int], since: float) -> bool:
    """Return whether a squid has no connection of a client, or has had its time. ``since`` is monotonic."""
    if time.monotonic() - since >= DRAIN:
        return True
    return not any(
        each.pid == pid and each.status == psutil.CONN_ESTABLISHED and each.laddr and each.laddr.port in among
        for each in psutil.net_connections("tcp")
    )


def _listening(policy: Policy) -> bool:
    return not any(ports.is_free(policy.listen.address, port) for port in policy.listen.proxy)


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise ProcessError(f"{otherwise}: see squid.log")
        time.sleep(0.01)

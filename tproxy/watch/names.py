"""Host names of the configuration whose addresses change: their services follow.

Theory of operation. Every INTERVAL seconds, threads look up all host names of the configuration, because a
lookup can take as long as a name server is silent, and the watcher's loop must not wait for that. The end of
the lookup reaches the loop as the end of file of a socket. Everything else happens in the loop. Threads run
only while names are looked up. They are daemon threads, so a silent name server does not keep the process
from ending, and they are started in the loop, where this process is in the root namespace.

A name for which there is no answer keeps its addresses (docs/contract.md, Configuration file). ``moves``
decides which services move. The addresses are kept in a file as well, so that a change is noticed that
happens while no watcher runs.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

from tproxy.addresses import is_address, is_endpoint
from tproxy.bridge import nftables
from tproxy.config.moves import Addresses, Moves, move, moves
from tproxy.config.resolver import addresses_of, usable
from tproxy.config.services import Config
from tproxy.config.union import Services, held_by
from tproxy.errors import TproxyError
from tproxy.kernel.loop import READ, Loop
from tproxy.model import Settings
from tproxy.operations import reconcile, refresh
from tproxy.process import run_directory

log = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds between the end of a lookup and the next one: few records live shorter than that
AT_ONCE = 4  # names that are looked up at the same time: one zone that is not answered must not delay all

FILE = "names.json"  # in the run directory

# Other programs do not take our lock: a link can go while it is changed.
UNSTEADY = (TproxyError, OSError)


class NameFollower:
    """Moves services by host name to the address that the name has.

    ``settings`` are for a daemon that has to be started. ``moved`` is called with a bridge on which services
    moved, and a function that moves services in the same way.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        settings: Callable[[], Settings],
        moved: Callable[[str, Callable[[Services], Services]], None],
    ) -> None:
        self.config = config
        self._loop = loop
        self._settings = settings
        self._moved = moved
        self._known: Addresses = _recall()
        self._behind: dict[str, Addresses] = {}  # bridges where a move failed: the addresses to move from
        self._pending: deque[str] = deque()  # bridges to look at after a change
        self._said: dict[str, str] = {}  # by bridge: why its last move failed
        self._reader: socket.socket | None = None  # while names are looked up
        self._found: dict[str, list[str]] = {}

    def look(self) -> None:
        """Look up all host names of the configuration now, and then again and again."""
        names = {name for each in self.config.entries for name in each.remote_addr if not is_endpoint(name)}
        if not names:
            self._look_later()
            return
        try:
            self._reader, writer = socket.socketpair()
        except OSError:  # no descriptor is free now
            self._look_later()
            return
        self._found = {name: [] for name in names}
        self._loop.add(self._reader.fileno(), READ, self)
        try:
            Thread(target=_look_up, args=(self._found, writer), daemon=True).start()
        except RuntimeError:  # no thread can be started now: all names are without an answer
            writer.close()

    def on_event(self, fd: int, mask: int) -> None:
        """Called when all names are looked up."""
        assert self._reader is not None
        self._loop.close_later(self._reader)
        self._reader = None
        self._apply(self._found)
        if not self._pending:
            self._look_later()

    def _look_later(self) -> None:
        self._loop.call_later(INTERVAL, self.look)

    def _apply(self, found: Addresses) -> None:
        before = self._known
        now = {name: addresses or before.get(name, ()) for name, addresses in found.items()}
        now = {name: addresses for name, addresses in now.items() if addresses}
        if now == before and not self._behind:
            return
        try:
            bridges = [each.bridge for each in refresh.following(nftables.read_maps())]
        except TproxyError as error:
            log.warning("changed addresses of host names cannot be followed: %s", error)
            return
        for name, addresses in now.items():
            if name in before and before[name] != addresses:
                was, now_is = ", ".join(before[name]), ", ".join(addresses)
                log.info("the address of %s is %s, no longer %s", name, now_is, was)
        self._behind = {bridge: self._behind.get(bridge, before) for bridge in bridges}
        self._known = now
        _remember(now)
        self._pending.extend(bridges)
        if bridges:
            self._loop.call_later(0, self._move_next)

    def _move_next(self) -> None:
        """Look at one bridge in each turn of the loop, because a move takes a while."""
        bridge = self._pending.popleft()
        if self._pending:
            self._loop.call_later(0, self._move_next)
        else:
            self._look_later()
        try:
            self._move(bridge)
        except UNSTEADY as error:
            if self._said.get(bridge) != str(error):
                log.warning("bridge %s does not follow a changed address yet: %s", bridge, error)
            self._said[bridge] = str(error)
            return
        del self._behind[bridge]
        self._said.pop(bridge, None)

    def _move(self, bridge: str) -> None:
        found = nftables.read_map(bridge)
        if found is None:  # somebody has taken it down
            return
        due: dict[int, Moves] = {}
        for network, order in found.orders.items():
            held = held_by(self.config, network, found)
            due[order] = moves(self.config, network, held, self._behind[bridge], self._known)
        moved = partial(move, due)
        if any(due.values()) and reconcile.move(found, moved, self._settings()):
            self._moved(bridge, moved)


def _look_up(found: dict[str, list[str]], done: socket.socket) -> None:
    """Fill in the addresses of the names in ``found``, and close ``done``. Runs in a thread of its own."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in found:
        waiting.put(name)
    helpers = [Thread(target=_work, args=(waiting, found), daemon=True) for _ in range(AT_ONCE - 1)]
    with done:
        with suppress(RuntimeError):  # no more threads: those that run do the work
            for each in helpers[: len(found) - 1]:
                each.start()
        _work(waiting, found)
        for each in helpers:
            if each.is_alive():
                each.join()


def _work(waiting: SimpleQueue[str], found: dict[str, list[str]]) -> None:
    with suppress(Empty):
        while True:
            name = waiting.get_nowait()
            with suppress(OSError, UnicodeError):
                found[name] = usable(addresses_of(name))


def _recall() -> Addresses:
    try:
        with open(f"{run_directory.directory()}/{FILE}", encoding="ascii") as file:
            return {
                str(name): [*filter(is_address, addresses)] for name, addresses in json.load(file).items()
            }
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged: begin anew
        return {}


def _remember(known: Addresses) -> None:
    path = f"{run_directory.directory()}/{FILE}"
    with suppress(OSError):
        unfinished = f"{path}.{os.getpid()}"
        with open(unfinished, "w", encoding="ascii") as file:
            json.dump(known, file)
        os.replace(unfinished, path)

"""Runs the mirror until it is told to stop: sockets, policy, ledger and what happens every so often."""

from __future__ import annotations

import asyncio
import logging
import pwd
import signal
from collections.abc import Callable, Collection

from tproxy.egress.gather.lists import Targets
from tproxy.egress.layout import SQUID_USER, Layout
from tproxy.egress.ledger import follower, heads, recorder
from tproxy.egress.ledger.chain import Ledger
from tproxy.egress.ledger.entries import Event
from tproxy.egress.ledger.follower import Follower
from tproxy.egress.ledger.recorder import Recorder
from tproxy.egress.mirror import keeping
from tproxy.egress.mirror.control import Control
from tproxy.egress.mirror.server import Listeners, Mirror, squid_context
from tproxy.egress.mirror.settings import Settings, settings_of
from tproxy.egress.model import Artifact, Caller, Verdict
from tproxy.egress.policy import judging
from tproxy.egress.policy.current import Current
from tproxy.egress.policy.rules import Limits
from tproxy.egress.signing import LEDGER, KeyPair
from tproxy.egress.store.store import Store
from tproxy.errors import TproxyError, to_ascii

log = logging.getLogger("tproxy.egress.mirror")

# Seconds between looks at the policy and at squid's log: a change counts within a second.
TICK = 0.5


class Node:
    """The mirror of an egress node, as the policy says."""

    def __init__(self, layout: Layout, quota: int | None) -> None:
        self._layout, self._quota = layout, quota
        self.policy = Current(layout.policy)
        self.store = Store(layout.store, quota)
        self.store.blobs.adopt_all()
        self.ledger = Ledger(layout.ledger)
        self.recorder = Recorder(self.ledger)
        self.follower = Follower(layout.access_log, layout.ledger / "access-log.place")
        self.mirror: Mirror

    def settings(self) -> Settings:
        return settings_of(self.policy.get(), self._layout.store, self._quota)

    def judge(self, caller: Caller, artifact: Artifact, suites: Collection[str] | None) -> Verdict:
        return judging.artifact(self.policy.get(), caller, artifact, suites)

    async def record(self, event: Event) -> None:
        await self.recorder.record(event)

    def make(self) -> Mirror:
        self.mirror = Mirror(self.settings(), self.store, self.judge, self.record)
        return self.mirror

    def limits(self, caller: Caller) -> Limits:
        return judging.limits(self.policy.get(), caller)

    def network_of(self, address: str) -> str:
        return self.policy.get().network_of(address)

    async def follow_policy(self, listeners: Listeners) -> None:
        """Replace the mirror when upstreams, mode or pinned files have changed."""
        try:
            changed = self.settings() != self.mirror.settings
        except TproxyError as error:
            log.error("the policy is not used: %s", error)
            return
        if changed:
            old = self.mirror
            listeners.mirror = self.make()
            # Requests that are being answered end with the old one, downloads included.
            asyncio.get_running_loop().call_later(3600, lambda: asyncio.ensure_future(old.close()))

    def update(self) -> None:
        """Fetch what is kept in advance, and log what is missing."""
        if self.mirror.settings.sealed:
            return
        try:
            for line in keeping.update(self.mirror.settings, Targets()):
                log.warning("kept in advance, and missing: %s", to_ascii(line))
        except TproxyError as error:
            log.warning("no update now: %s", error)

    async def follow_squid(self) -> None:
        """Write to the ledger what squid has answered by itself since the last time."""
        try:
            if lines := self.follower.new():
                await self.recorder.record(*follower.events(lines, self.policy.get().upstreams))
                self.follower.keep()
        except (OSError, TproxyError) as error:
            self.follower.again()
            log.error("squid's log cannot be brought into the ledger: %s", error)

    def sign_head(self) -> None:
        try:
            heads.sign(self.ledger, KeyPair(self._layout.keys, LEDGER))
        except (OSError, TproxyError) as error:
            log.error("the ledger's head cannot be signed: %s", error)


def _squid() -> int:
    """Return squid's user id; root's where squid is not installed."""
    try:
        return pwd.getpwnam(SQUID_USER).pw_uid
    except KeyError:
        return 0


async def run(
    layout: Layout,
    quota: int | None,
    guests_port: int | None,
    clients_port: int,
    update_every: float,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT. A port of 0 means that there is no such port, and None the policy's.

    ``update_every`` seconds what is kept in advance is fetched again; 0 means never.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    layout.run.mkdir(parents=True, exist_ok=True)
    node = Node(layout, quota)
    listeners = Listeners(node.make(), node.limits)
    control = Control(lambda: node.mirror)
    try:
        policy = node.policy.get()
        peer = layout.peer
        if (peer / "mirror.pem").exists():
            context = squid_context(peer / "mirror.pem", peer / "mirror.key", peer / "ca.pem")
            await listeners.for_squid("127.0.0.1", policy.listen.mirror, context)
        if guests_port is None:
            guests_port = policy.listen.guests
        if guests_port:
            await listeners.for_guests("127.0.0.1", guests_port)
        if clients_port:
            await listeners.for_clients("0.0.0.0", clients_port, node.network_of)
        await control.start(layout.mirror_socket)
        await recorder.serve(node.recorder, layout.ledger_socket, _squid())
        ready()
        next_head = 0.0
        next_update = asyncio.get_running_loop().time() + update_every
        update: asyncio.Task[None] | None = None
        while not stop.is_set():
            now = asyncio.get_running_loop().time()
            if now >= next_head:
                await asyncio.to_thread(node.sign_head)
                next_head = now + heads.EVERY
            if update_every and now >= next_update and (update is None or update.done()):
                next_update = now + update_every
                update = asyncio.create_task(asyncio.to_thread(node.update))
            await node.follow_squid()
            await node.follow_policy(listeners)
            try:
                await asyncio.wait_for(stop.wait(), TICK)
            except (TimeoutError, asyncio.TimeoutError):
                continue
    finally:
        await control.close()
        await listeners.close()
        await node.mirror.close()
        node.ledger.close()
        node.store.close()

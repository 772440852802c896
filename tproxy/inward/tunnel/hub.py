"""The hub of the running gateway: links of nodes, connections of operators, and streams between them.

Needs the extra ``inward`` (asyncssh). A node has one link: the newest one that came with its key. The older
one is asked for a sign of life, and ends (``twins`` says why it is asked). What the state says counts for
open connections too: ``review`` looks at it each second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.audit import Audit
from tproxy.inward.tunnel.enrolment import Refused, node_fault, operator_fault
from tproxy.inward.tunnel.names import Target
from tproxy.inward.tunnel.policy import Policy
from tproxy.inward.tunnel.records import SUSPENDED, Node, Operator
from tproxy.inward.tunnel.store import Store
from tproxy.inward.tunnel.streams import WINDOW, End, join
from tproxy.inward.tunnel.twins import Twins

# Seconds that a node has to open a channel: as long as a route's connect_timeout at most makes sense.
OPENING = 10.0
# Seconds for a sign of life, as keepalives have.
ALIVE = 4.0
# Streams of one connection of an operator, and of one node: arbitrary, far more than one of them needs.
MOST_STREAMS = 2000

_log = logging.getLogger("tproxy.tunnel")


class Caller:
    """One connection to the gateway: of a node, of an operator, or (without connection) the routes."""

    def __init__(
        self, who: str, name: str, key: str, address: str, connection: asyncssh.SSHServerConnection | None
    ) -> None:
        self.who = who  # with the kind: node:NAME
        self.name = name
        self.key = key
        self.address = address
        self.connection = connection
        self.serial = 0
        self.until = float("inf")  # when its certificate ends, in seconds since 1970
        self.since = time.time()
        self.asked: set[str] = set()  # what a node offers
        self.offers: set[str] = set()  # what of it the policy allows
        self.streams: set[Stream] = set()

    def end(self, reason: str) -> None:
        """End the connection, and its streams."""
        for each in [*self.streams]:
            each.close()
        if self.connection is not None:
            self.connection.disconnect(asyncssh.DISC_BY_APPLICATION, reason)


class Stream:
    """An open stream: the caller's end and the node's."""

    def __init__(self, hub: Hub, caller: Caller, target: Target, link: Caller, near: End) -> None:
        self.caller, self.target, self._link = caller, target, link
        self._hub = hub
        self._begun = time.monotonic()
        self._open = 2
        self.near, self.far = near, End(self._ended)
        near.ended = self._ended
        join(self.near, self.far)
        caller.streams.add(self)
        link.streams.add(self)

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.forget()

    def forget(self) -> None:
        """It is no more, or came to nothing."""
        if self in self._link.streams:
            self._link.streams.discard(self)
            self.caller.streams.discard(self)
            self._hub.ended(self, time.monotonic() - self._begun)

    def _ended(self, _: End) -> None:
        self._open -= 1
        if not self._open or self.near.transport is None:
            self.forget()


class Hub:
    """What the gateway knows of its connections. ``policy`` returns the one that counts now."""

    def __init__(self, store: Store, audit: Audit, policy: Callable[[], Policy]) -> None:
        self.store, self.audit, self.policy = store, audit, policy
        self.links: dict[str, Caller] = {}
        self.operators: set[Caller] = set()
        self.seen = store.seen()  # when nodes were here last
        self._twins = Twins()
        self._tasks: set[asyncio.Task[None]] = set()

    # Who comes and goes

    def fault(self, caller: Caller) -> str:
        """Why a connection is not served; "" if it is."""
        if caller.who.startswith("node:"):
            found = node_fault(self.store.find(Node, caller.name), caller.name, caller.key)
        else:
            found = operator_fault(self.store.find(Operator, caller.name), caller.name, caller.key)
        return found or ("the certificate is revoked" if caller.serial in self.store.denied() else "")

    def attach(self, caller: Caller) -> None:
        """A connection has logged in."""
        self.audit.write(
            "login", who=caller.who, address=caller.address, key=caller.key, serial=str(caller.serial)
        )
        if not caller.who.startswith("node:"):
            self.operators.add(caller)
            return
        old = self.links.get(caller.name)
        self.links[caller.name] = caller
        self.seen[caller.name] = time.time()
        if old is not None:
            self.start(self._replace(old, caller))

    def detach(self, caller: Caller) -> None:
        """A connection is lost."""
        for each in [*caller.streams]:
            each.close()
        self.operators.discard(caller)
        if self.links.get(caller.name) is caller:
            del self.links[caller.name]
        if caller.who.startswith("node:"):
            self.seen[caller.name] = time.time()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, old: Caller, new: Caller) -> None:
        alive = await is_alive(old)
        self.audit.write("replaced", who=old.who, address=old.address, by=new.address, alive=alive)
        old.end("another connection has this key")
        if not alive or not self._twins.replaced(new.name, time.monotonic()):
            return
        self._twins.forget(new.name)
        reason = f"one key on two machines, {old.address} and {new.address}"
        with self.store.locked():
            node = self.store.find(Node, new.name)
            if node is not None:
                self.store.put(node._replace(state=SUSPENDED, reason=reason))
        self.audit.write("suspended", who=new.who, reason=reason)
        _log.error("node %s is suspended: %s", new.name, reason)
        self.review()

    # Streams

    def refuse(self, caller: Caller, reason: str, **said: object) -> Refused:
        """Write a refusal down, and return the error."""
        self.audit.write("refused", who=caller.who, address=caller.address, reason=reason, **said)
        return Refused(reason)

    async def open(self, caller: Caller, target: Target, near: End | None = None) -> End:
        """Return the caller's end of a new stream, which may be there. The caller may use the target.

        Raises Refused.
        """
        said = {"node": target.node, "offer": target.offer}
        link = self.links.get(target.node)
        if link is None:
            raise self.refuse(caller, f"node {target.node} is {self.offline(target.node)}", **said)
        if target.offer not in link.offers:
            raise self.refuse(caller, f"node {target.node} does not offer {target.offer} now", **said)
        if len(caller.streams) >= MOST_STREAMS or len(link.streams) >= MOST_STREAMS:
            raise self.refuse(caller, f"there are {MOST_STREAMS} streams", **said)
        assert link.connection is not None
        stream = Stream(self, caller, target, link, near or End())
        try:
            far: Any = stream.far
            opening = link.connection.create_unix_connection(lambda: far, target.path, window=WINDOW)
            await asyncio.wait_for(opening, OPENING)
        except asyncio.TimeoutError:
            reason = f"node {target.node} does not answer"
        except asyncssh.ChannelOpenError as error:
            reason = f"node {target.node}: {error.reason}"
        except (asyncssh.Error, OSError) as error:
            reason = f"node {target.node} is gone: {error}"
        else:
            self.audit.write("stream", who=caller.who, address=caller.address, **said)
            return stream.near
        stream.caller.streams.discard(stream)
        link.streams.discard(stream)
        raise self.refuse(caller, reason, **said)

    def ended(self, stream: Stream, seconds: float) -> None:
        self.audit.write(
            "ended",
            who=stream.caller.who,
            node=stream.target.node,
            offer=stream.target.offer,
            seconds=round(seconds, 3),
            sent=stream.near.received,
            received=stream.far.received,
        )

    def offline(self, node: str) -> str:
        """Return since when a node that has no link is not here."""
        if self.store.find(Node, node) is None:
            return "unknown"
        seen = self.seen.get(node)
        if seen is None:
            return "offline, and was never here"
        return f"offline since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(seen))}"

    # What the state says

    def review(self) -> None:
        """End what state and policy do not allow any more. A record that cannot be read changes nothing."""
        policy = self.policy()
        for caller in [*self.links.values(), *self.operators]:
            try:
                reason = self.fault(caller)
            except TproxyError as error:
                _log.error("%s", error)
                continue
            if reason:
                self.refuse(caller, reason)
                caller.end(reason)
        for link in [*self.links.values()]:
            link.offers = {each for each in link.asked if policy.may_offer(link.name, each)}
            for stream in [*link.streams]:
                if not self._allowed(policy, stream):
                    self.refuse(stream.caller, "it is not allowed any more", node=link.name)
                    stream.close()

    def _allowed(self, policy: Policy, stream: Stream) -> bool:
        node, offer = stream.target
        link = self.links.get(node)
        if link is None or offer not in link.offers:
            return False
        if stream.caller.connection is None:
            return policy.may_route(node, offer)
        try:
            operator = self.store.find(Operator, stream.caller.name)
        except TproxyError:
            return True  # ``review`` has said it
        return operator is not None and not policy.fault_of(operator, node, offer)

    def save_seen(self) -> None:
        """Write down who is here, for the next gateway."""
        now = time.time()
        self.store.set_seen(self.seen | dict.fromkeys(self.links, now))


async def is_alive(caller: Caller, seconds: float = ALIVE) -> bool:
    """Whether the other side of a connection answers."""
    assert caller.connection is not None
    # asyncssh has no public call for one keepalive. Any answer counts, a refusal too.
    asking = caller.connection._make_global_request(b"keepalive@openssh.com")
    try:
        await asyncio.wait_for(asking, seconds)
    except (asyncio.TimeoutError, asyncssh.Error, OSError):
        return False
    await asyncio.sleep(0)  # a connection that was being closed is closed now
    return not caller.connection.is_closed()

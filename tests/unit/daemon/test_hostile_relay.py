"""A relay that was taken over sends the daemon anything, in any order, with any descriptors.

Whatever it is, the daemon's loop goes on, no descriptor stays, no process but the relay's own is signalled,
and other relays are heard.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.keys import keys
from tests.unit.daemon.standins import end, paused_process
from tests.unit.relay.hostile import KINDS, PAYLOADS, open_descriptors, send_hostile
from tests.unit.sockets import run_until
from tproxy.daemon.link import Link
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.kernel.netns import NamespaceId
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, send

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is told the namespace of a socket")


class Owner:
    """Notes what links tell, as ``relays.Relays`` would act on it."""

    def __init__(self) -> None:
        self.behinds: list[str] = []
        self.ended_links: list[Link] = []

    def greeted(self, link: Link) -> None:
        link.listen(keys(80, 81), 20)

    def reported(self, link: Link, before: dict[ServiceKey, int]) -> None:
        [os.strerror(number) for number in link.problems.values()]

    def accepted_before(self, link: Link, message: wire.Accepted, fds: list[int]) -> None:
        pass

    def copied(self, link: Link, key: ServiceKey, listener: socket.socket) -> None:
        listener.close()

    def behind(self, link: Link, place: int) -> None:
        self.behinds.append(link.bridge)

    def ended(self, link: Link, reason: str) -> None:
        assert reason.isprintable()
        if link not in self.ended_links:
            self.ended_links.append(link)
            link.close()


class HostileRelay(RuleBasedStateMachine):
    """One link to a hostile relay at a time, and one to a relay of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.before = open_descriptors()
        self.loop = Loop()
        self.owner = Owner()
        self.bystander = paused_process()
        near, self.ours = pair()
        near.setblocking(False)
        self.good = Link(self.loop, "good", near, self.owner)
        self.good.namespace, self.good.version = NamespaceId(1, 1), wire.VERSION
        self.links: list[Link] = []
        self.channels: list[socket.socket] = []
        self.pids: list[int] = []
        self.start()

    def start(self) -> None:
        """Start another relay, as the spawner does: it is our own code until it has said Born."""
        near, far = pair()
        near.setblocking(False)
        far.setblocking(False)
        pid = paused_process()
        self.links.append(Link(self.loop, "evil", near, self.owner))
        self.channels.append(far)
        self.pids.append(pid)
        pidfd = os.pidfd_open(pid)
        send(far, wire.Born(pid), [pidfd])
        os.close(pidfd)
        self.turn()

    def turn(self) -> None:
        """Let the daemon act on all that it was sent: a message of ours comes after the others."""
        for _ in range(3):
            told = len(self.owner.behinds)
            send(self.ours, wire.Behind(0))
            run_until(self.loop, lambda told=told: len(self.owner.behinds) > told)  # type: ignore[misc]

    @rule(payload=PAYLOADS, kinds=KINDS)
    def say(self, payload: bytes, kinds: list[str]) -> None:
        send_hostile(self.channels[-1], payload, kinds)
        self.turn()

    @rule(payloads=st.lists(st.tuples(PAYLOADS, KINDS), max_size=6))
    def say_much_at_once(self, payloads: list[tuple[bytes, list[str]]]) -> None:
        for payload, kinds in payloads:
            send_hostile(self.channels[-1], payload, kinds)
        self.turn()

    @rule()
    def say_hello(self) -> None:
        send_hostile(self.channels[-1], wire.encode(wire.Hello(wire.VERSION)), ["UDP"])
        self.turn()

    @rule()
    def end(self) -> None:
        self.channels[-1].close()
        self.turn()

    @invariant()
    def another_relay_follows_one_that_was_cut_off(self) -> None:
        if self.links[-1] in self.owner.ended_links:
            self.channels[-1].close()
            end(self.pids[-1])
            self.start()

    @invariant()
    def no_other_process_was_signalled(self) -> None:
        assert os.waitid(os.P_PID, self.bystander, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        assert self.good not in self.owner.ended_links

    def teardown(self) -> None:
        for link in (self.good, self.links[-1]):
            if link not in self.owner.ended_links:
                self.owner.ended(link, "")
        self.loop.close()
        self.ours.close()
        self.channels[-1].close()
        for pid in (self.bystander, self.pids[-1]):
            end(pid)
        assert open_descriptors() == self.before


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note the catchable signals that this process gets."""
    got: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        yield got
    finally:
        signal.signal(signal.SIGTERM, former)


@needs_root
@pytest.mark.parametrize("place", ["in this namespace", "elsewhere"])
def test_no_message_of_a_relay_harms_anybody_else(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """``place``: where the bridge's namespace is, and with it the sockets that are sent."""
    here = netns.current()
    there = here if place == "in this namespace" else NamespaceId(here.device, here.inode + 1)
    monkeypatch.setattr(netns, "identify", lambda _: there)
    # A channel that this process makes leads to this process, which is no relay.
    monkeypatch.setattr(netns, "of_process", lambda pid: NamespaceId(0, pid))
    with signals_noted() as got:
        run_state_machine_as_test(
            HostileRelay,
            settings=settings(
                max_examples=12,
                stateful_step_count=15,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert got == []

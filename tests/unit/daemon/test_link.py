"""A link: whatever a relay sends, its descriptors are taken over or closed, and the link goes on or ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.keys import keys
from tests.unit.daemon.standins import end, paused_process
from tests.unit.sockets import copies, run_until
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.daemon.budget import BURST, MESSAGE
from tproxy.daemon.link import REASON_LENGTH, Link
from tproxy.kernel import netns
from tproxy.kernel.loop import Loop
from tproxy.model import ServiceKey
from tproxy.relay import wire
from tproxy.relay.channel import pair, receive, send

IP_FREEBIND = 15  # <linux/in.h>


class Owner:
    """Notes what a link tells."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.behinds: list[int] = []
        self.copies: list[int] = []
        self.ends: list[str] = []

    def greeted(self, link: Link) -> None:
        raise AssertionError("no relay of these tests says Hello from a namespace")

    def reported(self, link: Link, before: dict[ServiceKey, int]) -> None:
        pass

    def accepted_before(self, link: Link, message: wire.Accepted, fds: list[int]) -> None:
        self.accepted.append(len(fds))

    def copied(self, link: Link, key: ServiceKey, listener: socket.socket) -> None:
        self.copies.append(key.port)
        listener.close()

    def behind(self, link: Link, place: int) -> None:
        self.behinds.append(place)

    def ended(self, link: Link, reason: str) -> None:
        self.ends.append(reason)
        link.close()

    @property
    def told(self) -> int:
        return len(self.accepted) + len(self.behinds) + len(self.copies) + len(self.ends)


class Setting:
    """A link that has greeted, if told so, with the test as its relay."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.owner = Owner()
        near, self.relay = pair()
        near.setblocking(False)
        self.link = Link(self.loop, "br0", near, self.owner)

    def greet(self, version: int = wire.VERSION) -> None:
        """Go on as if the relay had said Hello."""
        self.link.namespace, self.link.version = netns.current(), version

    def send(self, message: wire.Message, fds: list[int]) -> None:
        """Send a message that the owner hears of; the link has acted on it when this returns."""
        told = self.owner.told
        send(self.relay, message, fds)
        run_until(self.loop, lambda: self.owner.told > told)
        run_until(self.loop, lambda: True)  # what was to be closed is closed


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    if not made.owner.ends:
        made.link.close()
    made.loop.close()
    made.relay.close()


@pytest.fixture
def file() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        yield sock.fileno()


UNEXPECTED: dict[str, tuple[wire.Message, int]] = {
    "connections before Hello": (wire.Accepted(ServiceKey(80)), 2),
    "a report before Hello": (wire.Report(1, {}), 1),
    "Behind before Hello": (wire.Behind(0), 1),
    "Hello without a proof": (wire.Hello(wire.VERSION), 0),
    "Hello with two proofs": (wire.Hello(wire.VERSION), 2),
    "Adopted without a channel": (wire.Adopted(), 0),
    "Adopted with two channels": (wire.Adopted(), 2),
    "Born without a pidfd": (wire.Born(1), 0),
    "Born with two": (wire.Born(1), 2),
    "listening sockets before Hello": (wire.Listeners(keys(80, 81)), 2),
}


@pytest.mark.parametrize("case", UNEXPECTED)
def test_an_unexpected_message_ends_the_link_and_leaves_no_descriptor(
    setting: Setting, file: int, case: str
) -> None:
    message, count = UNEXPECTED[case]
    setting.send(message, [file] * count)
    kind = type(message).__name__
    assert setting.owner.ends == [f"relay lost: unexpected {kind} with {count} descriptors"]
    assert copies(file) == 1


def test_a_relay_passes_no_guests_to_the_daemon(setting: Setting, file: int) -> None:
    setting.greet()
    setting.send(wire.Accepted(ServiceKey(80)), [file] * 3)
    assert setting.owner.ends == ["relay lost: unexpected Accepted with 3 descriptors"]
    assert copies(file) == 1


def test_guests_that_a_relay_of_version_1_had_accepted_are_told_and_closed(
    setting: Setting, file: int
) -> None:
    setting.greet(version=1)
    setting.send(wire.Accepted(ServiceKey(80)), [file] * 3)
    assert setting.owner.accepted == [3]
    assert copies(file) == 1


def test_the_owner_hears_of_a_worker_that_is_behind_and_descriptors_beside_it_are_closed(
    setting: Setting, file: int
) -> None:
    setting.greet()
    setting.send(wire.Behind(3), [file] * 2)
    assert setting.owner.behinds == [3]
    assert copies(file) == 1


@pytest.mark.parametrize("message", [wire.Hello(wire.VERSION), wire.Adopted()], ids=["Hello", "Adopted"])
def test_a_descriptor_that_is_no_socket_ends_the_link_and_is_closed(
    setting: Setting, message: wire.Message
) -> None:
    file = os.memfd_create("no socket")
    try:
        setting.send(message, [file])
        assert "non-socket" in setting.owner.ends[0]
        assert copies(file) == 1
    finally:
        os.close(file)


def test_a_relay_that_was_there_already_goes_on_over_the_channel_that_was_brought(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns, "identify", lambda _: netns.current())  # the bridge's namespace is this one
    near, far = pair()
    with far:
        send(setting.relay, wire.Adopted(), [near.fileno()])
        near.close()
        run_until(setting.loop, lambda: setting.link.pid == os.getpid())  # who made the channel
        send(far, wire.Failed("heard"), [])
        run_until(setting.loop, lambda: bool(setting.owner.ends))
    assert setting.owner.ends == ["heard"]


def test_a_channel_that_a_process_outside_of_the_bridges_namespace_made_is_refused(setting: Setting) -> None:
    """The daemon learns from the channel whom to kill: a relay could bring one that the daemon has made."""
    near, far = pair()
    with near, far:
        setting.send(wire.Adopted(), [near.fileno()])
        assert copies(near.fileno()) == 1
    assert setting.owner.ends == ["relay lost: its channel leads into another namespace than the bridge's"]


def test_a_relay_that_says_too_much_is_cut_off(setting: Setting, file: int) -> None:
    setting.greet()
    most = BURST // MESSAGE

    def flood() -> bool:
        with suppress(BlockingIOError, ConnectionError):
            while True:
                send(setting.relay, wire.Behind(0))
        return bool(setting.owner.ends)

    setting.relay.setblocking(False)
    run_until(setting.loop, flood)
    assert setting.owner.ends == ["relay lost: it says too much"]
    assert most <= len(setting.owner.behinds) < 2 * most


def test_a_report_that_nobody_asked_for_is_refused(setting: Setting) -> None:
    setting.greet()
    setting.link.listen(keys(80), 20)
    send(setting.relay, wire.Report(1, {}))
    run_until(setting.loop, lambda: setting.link.settled)
    setting.send(wire.Report(1, {ServiceKey(80): 98}), [])
    assert setting.owner.ends == ["relay lost: it reports what nobody asked for"]


def test_an_error_in_what_a_message_leads_to_ends_the_link_and_not_the_loop(
    setting: Setting, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    setting.greet()
    monkeypatch.setattr(setting.owner, "behind", fail)
    setting.send(wire.Behind(0), [file])
    assert setting.owner.ends == ["relay lost: 'a fault of ours'"]
    assert copies(file) == 1


def test_the_end_of_the_channel_is_the_end_of_the_relay(setting: Setting) -> None:
    setting.relay.close()
    run_until(setting.loop, lambda: bool(setting.owner.ends))
    assert setting.owner.ends == ["relay ended"]


@pytest.fixture
def child() -> Iterator[int]:
    """A process that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.pause()
        finally:
            os._exit(1)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_process_that_is_killed_is_the_one_of_the_pidfd_that_came_first(
    setting: Setting, child: int
) -> None:
    pidfd, own = os.pidfd_open(child), os.pidfd_open(os.getpid())
    send(setting.relay, wire.Born(child), [pidfd])
    run_until(setting.loop, lambda: setting.link.pid == child)
    # Later the process may be taken over: nothing that it says changes who is killed.
    setting.send(wire.Born(os.getpid()), [own])
    assert setting.owner.ends == ["relay lost: unexpected Born with 1 descriptors"]
    assert setting.link.pid == child
    assert copies(own) == 1
    os.close(own)
    os.close(pidfd)


def test_killing_ends_the_process_that_was_born(setting: Setting, child: int) -> None:
    pidfd = os.pidfd_open(child)
    send(setting.relay, wire.Born(child), [pidfd])
    run_until(setting.loop, lambda: setting.link.pid == child)
    setting.link.kill()
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    assert ended.poll()
    os.close(pidfd)


def test_a_relay_that_was_never_born_is_not_killed(setting: Setting) -> None:
    setting.link.kill()


def test_a_reason_cannot_fill_the_log_or_end_its_line(setting: Setting) -> None:
    setting.send(wire.Failed("a\nb" + "x" * 10000), [])
    assert setting.owner.ends == ["a\\nb" + "x" * (REASON_LENGTH - 3)]


def test_data_channels_and_log_files_stay_the_callers(setting: Setting, file: int) -> None:
    with socket.socket() as channel:
        setting.link.use_workers([channel, channel])
        setting.link.use_log(file)
        for message, count in (wire.Workers(), 2), (wire.LogFile(), 1):
            delivery = receive(setting.relay)
            assert delivery is not None
            with delivery:
                assert (delivery.message, len(delivery.fds)) == (message, count)
        assert (copies(channel.fileno()), copies(file)) == (1, 1)


def listening(port: int, address: str = SERVICE_ADDRESS, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket as a relay has it, or nearly so; this namespace need not have the address."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def not_listening(port: int) -> socket.socket:
    sock = listening(port)
    sock.shutdown(socket.SHUT_RD)
    return sock


def unix() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("")  # a name of the kernel's choice, unix(7)
    sock.listen()
    return sock


PORT, OTHER = 47113, 47114
NOT_TAKEN = {
    "of another port": lambda: listening(OTHER),
    # One that nobody else on this host takes ports of: other tests run at the same time.
    "of another address": lambda: listening(PORT, "127.0.0.47"),
    "that does not listen": lambda: not_listening(PORT),
    "of UDP": lambda: listening(PORT, kind=socket.SOCK_DGRAM),
    "of family UNIX": unix,
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_a_copy_is_taken_only_of_a_socket_that_a_relay_must_have(setting: Setting, case: str) -> None:
    setting.greet()
    setting.link.listen(keys(PORT), 20)
    with listening(PORT) as right, NOT_TAKEN[case]() as wrong:
        setting.send(wire.Listeners(keys(PORT, PORT)), [wrong.fileno(), right.fileno()])
        assert setting.owner.copies == [PORT]
        assert setting.owner.ends == []
        assert (copies(wrong.fileno()), copies(right.fileno())) == (1, 1)


def test_a_copy_of_a_port_that_is_not_wanted_any_more_is_closed(setting: Setting) -> None:
    setting.greet()
    setting.link.listen(keys(OTHER), 20)
    with listening(PORT) as former, listening(OTHER) as right:
        setting.send(wire.Listeners(keys(PORT, OTHER)), [former.fileno(), right.fileno()])
        assert setting.owner.copies == [OTHER]
        assert copies(former.fileno()) == 1


def test_a_report_on_what_was_not_asked_for_ends_the_link_and_the_trust_in_its_sockets(
    setting: Setting,
) -> None:
    setting.greet()
    setting.link.listen(keys(PORT), 20)
    setting.send(wire.Report(2, {}), [])
    assert setting.owner.ends == ["relay lost: it reports what it was not asked for"]
    assert not setting.link.trusted


def test_the_kernel_says_whether_a_relay_runs(setting: Setting) -> None:
    setting.link.pid = os.getpid()
    assert setting.link.runs
    setting.link.pid = paused_process()
    try:
        while setting.link.runs:  # until it has paused
            time.sleep(0.01)
    finally:
        end(setting.link.pid)
    assert not setting.link.runs

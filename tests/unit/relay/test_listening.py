"""The listening sockets of a relay: what it does while no connection can be accepted."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from tests.unit.recorder import Recorder
from tests.unit.sockets import run_until
from tproxy.kernel.loop import Loop
from tproxy.model import ServiceKey
from tproxy.relay import listening
from tproxy.relay.listening import Batch, Listening


class Full(socket.socket):
    """A listening socket of a process without a free descriptor."""

    failures = 0

    def _accept(self) -> tuple[int, object]:
        self.failures += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture
def full() -> Iterator[Full]:
    with Full() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_a_lasting_lack_of_descriptors_is_one_warning_a_minute(
    full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PAUSE", 0.001)
    loop, log = Loop(), Recorder()
    relay = Listening(loop, log, lambda batch: None)
    relay.keep(ServiceKey(80), full)
    relay.accept_while(True)
    with socket.create_connection(full.getsockname()):
        run_until(loop, lambda: full.failures >= 5)
        assert log.warnings == ["cannot accept for now: Too many open files"]
        monkeypatch.setattr(listening, "QUIET", 0.0)  # as if the minute were over
        run_until(loop, lambda: full.failures >= 7)
        assert len(log.warnings) >= 2
    loop.close()


def test_a_guest_whose_socket_nobody_served_gets_a_reset_and_no_end_of_file() -> None:
    """As when relay or worker die: the option is on the socket itself, so the kernel does it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    batches: list[Batch] = []
    loop = Loop()
    relay = Listening(loop, Recorder(), batches.append)
    assert relay.listen((ServiceKey(port, address="127.0.0.1"),)) == {}
    relay.accept_while(True)
    with socket.create_connection(("127.0.0.1", port)) as guest:
        guest.sendall(b"hello")
        run_until(loop, lambda: bool(batches))
        assert batches[0].guests == (socket.inet_aton("127.0.0.1"),)
        with socket.socket(fileno=os.dup(batches[0].fds[0])) as accepted:
            assert accepted.recv(100) == b"hello"
        batches[0].close()
        with pytest.raises(ConnectionResetError):
            guest.recv(1)
    relay.listen(())
    run_until(loop, lambda: True)
    loop.close()

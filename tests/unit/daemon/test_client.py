"""Requests to the daemon: every client gets an answer, or an error that says why not, whatever it sent."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.sockets import descriptors, run_until
from tproxy.daemon import client
from tproxy.daemon.client import SOCKET, Json, apply, ask
from tproxy.daemon.server import MAX_REQUEST, Client, Server
from tproxy.errors import ProcessError, ProtocolError
from tproxy.kernel.loop import Loop
from tproxy.model import Settings
from tproxy.process import run_directory

PATIENCE = 100.0


@pytest.fixture(autouse=True)
def run_directory_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "directory", lambda: str(tmp_path))


class Asking(threading.Thread):
    """Calls ``ask``, which blocks, in a thread: the daemon's loop runs meanwhile."""

    def __init__(self, request: Json, timeout: float = PATIENCE) -> None:
        super().__init__(daemon=True)
        self._arguments = (request, timeout)
        self.answer: Json | None = None
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            self.answer = ask(*self._arguments)
        except ProcessError as error:
            self.error = str(error)

    @property
    def done(self) -> bool:
        return not self.is_alive()


@contextmanager
def serving(directory: Path, handle: Callable[[Json, Client], None]) -> Iterator[Loop]:
    loop = Loop()
    server = Server(loop, str(directory), handle)
    try:
        yield loop
    finally:
        server.close()
        run_until(loop, lambda: True)


def echo(request: Json, client: Client) -> None:
    client.answer({"you said": request})


def exchange(loop: Loop, directory: Path, raw: bytes) -> bytes:
    """Send these bytes as they are; return all that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(directory / SOCKET))
        sock.setblocking(False)
        left, got = memoryview(raw), b""

        def talk() -> bool:
            nonlocal left, got
            try:
                if left:
                    left = left[sock.send(left) :]
                while data := sock.recv(65536):
                    got += data
            except BlockingIOError:
                return False
            except OSError:
                pass  # it has hung up, which is an answer as well
            return True

        run_until(loop, talk)
        return got


@pytest.mark.parametrize(
    "question", [{}, {"do": "status"}, {"name": "q\"'\n\udcff é", "of": [1, None, {"x": True}]}], ids=str
)
def test_requests_and_answers_arrive_unchanged(tmp_path: Path, question: Json) -> None:
    with serving(tmp_path, echo) as loop:
        asking = Asking(question)
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": question}


def test_clients_may_be_answered_in_another_order_than_they_asked(tmp_path: Path) -> None:
    waiting: list[tuple[Json, Client]] = []
    with serving(tmp_path, lambda request, client: waiting.append((request, client))) as loop:
        asking = [Asking({"number": number}) for number in range(20)]
        run_until(loop, lambda: len(waiting) == 20)
        for request, client in reversed(waiting):
            client.answer(request)
        run_until(loop, lambda: all(each.done for each in asking))
    assert [each.answer for each in asking] == [{"number": number} for number in range(20)]


def test_a_client_waits_while_the_backlog_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: tried.set())
    monkeypatch.setattr(client, "time", clock)  # it sleeps between two tries to connect
    with serving(tmp_path, echo) as loop, ExitStack() as crowd:
        number = 0
        while number == 0:
            sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            number = sock.connect_ex(str(tmp_path / SOCKET))
        assert number == errno.EAGAIN
        one_more = Asking({"op": "ping"})
        assert tried.wait(PATIENCE)
        run_until(loop, lambda: one_more.done)
    assert one_more.answer == {"you said": {"op": "ping"}}


def test_an_answer_larger_than_any_buffer_arrives_whole(tmp_path: Path) -> None:
    large = {"bridges": {f"br{number}": "x" * 1000 for number in range(5000)}}
    with serving(tmp_path, lambda _, client: client.answer(large)) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.answer == large


def test_an_error_in_the_answer_is_raised(tmp_path: Path) -> None:
    with serving(tmp_path, lambda _, client: client.answer({"error": "no such bridge"})) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.error == "no such bridge"


@pytest.mark.parametrize(
    "raw",
    [b"\n", b"{\n", b"\xff\xfe\n", b"[1, 2\n", b'{"a": \n', b"x" * 1000 + b"\n", b"[" * 50_000 + b"\n"],
    ids=lambda raw: repr(raw[:9]),
)
def test_a_malformed_request_is_answered_with_an_error(tmp_path: Path, raw: bytes) -> None:
    with serving(tmp_path, echo) as loop:
        answer = json.loads(exchange(loop, tmp_path, raw))
        assert answer["error"].startswith("bad request: ")
        asking = Asking({"still": "there"})
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": {"still": "there"}}


@pytest.mark.parametrize(
    "problem", [KeyError("do"), TypeError("x"), ValueError("x"), ProtocolError("x")], ids=repr
)
def test_a_request_that_cannot_be_handled_is_answered_with_an_error(
    tmp_path: Path, problem: Exception
) -> None:
    def refuse(request: Json, client: Client) -> None:
        raise problem

    with serving(tmp_path, refuse) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.error.startswith("bad request: ")


def test_a_client_that_sends_too_much_without_a_line_end_is_disconnected(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as loop:
        assert exchange(loop, tmp_path, b"x" * (MAX_REQUEST + 1)) == b""


def test_a_request_may_arrive_byte_by_byte(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as loop, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / SOCKET))
        for byte in b'{"a": 1}\n':
            sock.send(bytes([byte]))
            run_until(loop, lambda: True)
        sock.setblocking(False)
        got = b""

        def arrived() -> bool:
            nonlocal got
            try:
                got += sock.recv(1000)
            except BlockingIOError:
                return False
            return True

        run_until(loop, arrived)
    assert json.loads(got) == {"you said": {"a": 1}}


def test_clients_that_leave_early_leave_no_descriptor(tmp_path: Path) -> None:
    clients: list[Client] = []
    with serving(tmp_path, lambda _, client: clients.append(client)) as loop:
        before = descriptors()
        for said in (b"", b"{", b"{}\n"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / SOCKET))
                sock.send(said)
                if said.endswith(b"\n"):
                    run_until(loop, lambda: bool(clients))
        for client in clients:
            client.answer({"too": "late"})
        run_until(loop, lambda: descriptors() <= before)


@pytest.mark.parametrize("left", ["nothing", "a socket", "a file"])
def test_asking_raises_when_no_daemon_listens(tmp_path: Path, left: str) -> None:
    if left == "a socket":
        with socket.socket(socket.AF_UNIX) as crashed:
            crashed.bind(str(tmp_path / SOCKET))
    elif left == "a file":
        (tmp_path / SOCKET).touch()
    with pytest.raises(ProcessError, match=r"^the daemon is not running$"):
        ask({}, 1.0)


@pytest.mark.parametrize("left", ["a socket", "a file"])
def test_the_socket_file_that_a_crash_left_is_replaced(tmp_path: Path, left: str) -> None:
    test_asking_raises_when_no_daemon_listens(tmp_path, left)
    with serving(tmp_path, echo) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": {}}
    assert list(tmp_path.iterdir()) == []


def test_asking_raises_when_the_daemon_does_not_answer_in_time(tmp_path: Path) -> None:
    with serving(tmp_path, lambda *_: None) as loop:
        asking = Asking({}, timeout=0.05)
        run_until(loop, lambda: asking.done)
    assert asking.error == "the daemon did not answer within 0.05 s"


def test_asking_raises_when_the_daemon_dies_meanwhile(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / SOCKET))
        dying.listen()
        asking = Asking({})
        dying.accept()[0].close()
        asking.join(PATIENCE)
    assert asking.error.startswith("the daemon ended before it answered")


def test_asking_raises_when_the_answer_is_incomplete(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / SOCKET))
        dying.listen()
        asking = Asking({})
        with dying.accept()[0] as sock:
            sock.recv(1000)
            sock.send(b'{"bridges": {"br')
        asking.join(PATIENCE)
    assert asking.error.startswith("the daemon ended before it answered")


@pytest.mark.parametrize("workers", [None, 0, 3])
def test_only_settings_that_are_known_are_part_of_a_request(tmp_path: Path, workers: int | None) -> None:
    requests: list[Json] = []

    def take(request: Json, client: Client) -> None:
        requests.append(request)
        client.answer({"ending": False, "problems": []})

    with serving(tmp_path, take) as loop:
        applying = threading.Thread(target=apply, args=(["br0"], Settings(workers=workers)), daemon=True)
        applying.start()
        run_until(loop, lambda: not applying.is_alive())
    expected = {"op": "apply", "reopen_logs": False, "bridges": ["br0"]}
    assert requests == [expected if workers is None else {**expected, "workers": workers}]

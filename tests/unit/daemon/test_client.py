"""Questions to the daemon: who asks gets an answer, or a line that says why not, whatever was sent."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.unit.sockets import descriptors, run_until
from tproxy.daemon.client import SOCKET, Json, ask
from tproxy.daemon.server import MAX_REQUEST, Client, Server
from tproxy.errors import ProcessError, ProtocolError
from tproxy.kernel.loop import Loop
from tproxy.process import run_directory

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def run_directory_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "directory", lambda: str(tmp_path))


class Asking(threading.Thread):
    """``ask`` blocks, as a command does; the loop runs meanwhile."""

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
    """Send bytes as they are, and the end; returns all that comes back."""
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
def test_a_question_arrives_as_it_was_asked_and_so_does_the_answer(tmp_path: Path, question: Json) -> None:
    with serving(tmp_path, echo) as loop:
        asking = Asking(question)
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": question}


def test_many_may_ask_at_once_and_be_answered_in_another_order(tmp_path: Path) -> None:
    waiting: list[tuple[Json, Client]] = []
    with serving(tmp_path, lambda request, client: waiting.append((request, client))) as loop:
        asking = [Asking({"number": number}) for number in range(20)]
        run_until(loop, lambda: len(waiting) == 20)
        for request, client in reversed(waiting):
            client.answer(request)
        run_until(loop, lambda: all(each.done for each in asking))
    assert [each.answer for each in asking] == [{"number": number} for number in range(20)]


def test_who_comes_when_too_many_ask_waits_for_its_turn(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as loop, ExitStack() as crowd:
        number = 0
        while number == 0:
            sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            number = sock.connect_ex(str(tmp_path / SOCKET))
        assert number == errno.EAGAIN
        one_more = Asking({"op": "ping"})
        one_more.join(0.5)  # time to be turned away
        run_until(loop, lambda: one_more.done)
    assert one_more.answer == {"you said": {"op": "ping"}}


def test_an_answer_larger_than_any_buffer_arrives_whole(tmp_path: Path) -> None:
    large = {"bridges": {f"br{number}": "x" * 1000 for number in range(5000)}}
    with serving(tmp_path, lambda _, client: client.answer(large)) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.answer == large


def test_an_error_is_the_line_that_the_daemon_said(tmp_path: Path) -> None:
    with serving(tmp_path, lambda _, client: client.answer({"error": "no such bridge"})) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.error == "no such bridge"


@pytest.mark.parametrize(
    "raw",
    [b"\n", b"{\n", b"\xff\xfe\n", b"[1, 2\n", b'{"a": \n', b"x" * 1000 + b"\n", b"[" * 50_000 + b"\n"],
    ids=lambda raw: repr(raw[:9]),
)
def test_what_is_no_question_is_answered_with_an_error(tmp_path: Path, raw: bytes) -> None:
    with serving(tmp_path, echo) as loop:
        answer = json.loads(exchange(loop, tmp_path, raw))
        assert answer["error"].startswith("bad request: ")
        asking = Asking({"still": "there"})
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": {"still": "there"}}


@pytest.mark.parametrize(
    "problem", [KeyError("do"), TypeError("x"), ValueError("x"), ProtocolError("x")], ids=repr
)
def test_a_question_that_cannot_be_understood_does_not_end_the_daemon(
    tmp_path: Path, problem: Exception
) -> None:
    def refuse(request: Json, client: Client) -> None:
        raise problem

    with serving(tmp_path, refuse) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.error.startswith("bad request: ")


def test_who_sends_without_end_is_not_kept(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as loop:
        assert exchange(loop, tmp_path, b"x" * (MAX_REQUEST + 1)) == b""


def test_a_question_in_single_bytes_is_a_question(tmp_path: Path) -> None:
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


def test_who_leaves_early_costs_nothing(tmp_path: Path) -> None:
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
def test_where_no_daemon_listens_that_is_what_is_said(tmp_path: Path, left: str) -> None:
    if left == "a socket":
        with socket.socket(socket.AF_UNIX) as crashed:
            crashed.bind(str(tmp_path / SOCKET))
    elif left == "a file":
        (tmp_path / SOCKET).touch()
    with pytest.raises(ProcessError, match=r"^the daemon is not running$"):
        ask({}, 1.0)


@pytest.mark.parametrize("left", ["a socket", "a file"])
def test_what_a_crash_left_is_replaced(tmp_path: Path, left: str) -> None:
    test_where_no_daemon_listens_that_is_what_is_said(tmp_path, left)
    with serving(tmp_path, echo) as loop:
        asking = Asking({})
        run_until(loop, lambda: asking.done)
    assert asking.answer == {"you said": {}}
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with serving(tmp_path, lambda *_: None) as loop:
        asking = Asking({}, timeout=0.05)
        run_until(loop, lambda: asking.done)
    assert asking.error == "the daemon did not answer within 0.05 s"


def test_a_daemon_that_dies_meanwhile_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / SOCKET))
        dying.listen()
        asking = Asking({})
        dying.accept()[0].close()
        asking.join(PATIENCE)
    assert asking.error.startswith("the daemon ended before it answered")


def test_half_an_answer_is_an_error_and_not_a_traceback(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / SOCKET))
        dying.listen()
        asking = Asking({})
        with dying.accept()[0] as sock:
            sock.recv(1000)
            sock.send(b'{"bridges": {"br')
        asking.join(PATIENCE)
    assert asking.error.startswith("the daemon ended before it answered")

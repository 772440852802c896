"""Streams: two ends on real sockets, whatever ends first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine

import pytest

from tproxy.inward.tunnel import streams
from tproxy.inward.tunnel.streams import End, join

Scenario = Callable[[socket.socket, socket.socket], Coroutine[None, None, None]]


def run(scenario: Scenario) -> list[End]:
    """Run a scenario with the outer sockets of a stream; return its ends that were lost, in order."""
    lost: list[End] = []

    async def all_of_it() -> None:
        loop = asyncio.get_running_loop()
        outer, inner = zip(socket.socketpair(), socket.socketpair(), strict=True)
        ends = End(lost.append), End(lost.append)
        join(*ends)
        for end, sock in zip(ends, inner, strict=True):
            await loop.create_connection(lambda end=end: end, sock=sock)  # type: ignore[misc]
        for sock in outer:
            sock.setblocking(False)
        try:
            await asyncio.wait_for(scenario(*outer), 60)
        finally:
            for sock in outer:
                sock.close()
        while len(lost) < 2:
            await asyncio.sleep(0.01)

    asyncio.run(all_of_it())
    return lost


def test_each_direction_ends_by_itself() -> None:
    async def scenario(one: socket.socket, two: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(one, b"question")
        one.shutdown(socket.SHUT_WR)
        assert await everything(two) == b"question"
        await loop.sock_sendall(two, b"answer")
        two.shutdown(socket.SHUT_WR)
        assert await everything(one) == b"answer"

    assert {each.received for each in run(scenario)} == {8, 6}


def test_what_was_said_last_arrives_before_the_end() -> None:
    data = bytes(5_000_000)

    async def scenario(one: socket.socket, two: socket.socket) -> None:
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(one, data))
        sending.add_done_callback(lambda _: one.close())
        assert await everything(two) == data

    run(scenario)


def test_a_sender_waits_for_a_reader_that_does_not_read() -> None:
    async def scenario(one: socket.socket, two: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(one, bytes(20_000_000)), 1)

    run(scenario)


def test_what_came_before_is_passed_on_first() -> None:
    near, far = End(), End()
    near.push_back(b"second")
    near.push_back(b"first ")

    async def scenario() -> bytes:
        loop = asyncio.get_running_loop()
        (one, in_one), (two, in_two) = socket.socketpair(), socket.socketpair()
        await loop.create_connection(lambda: near, sock=in_one)
        join(near, far)
        await loop.create_connection(lambda: far, sock=in_two)
        two.setblocking(False)
        with one, two:
            return await loop.sock_recv(two, 100)

    assert asyncio.run(scenario()) == b"first second"


def test_a_half_closed_stream_that_is_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HALF_CLOSED", 0.05)

    async def scenario(one: socket.socket, two: socket.socket) -> None:
        one.shutdown(socket.SHUT_WR)
        assert await everything(two) == b""
        assert await everything(one) == b""

    run(scenario)


async def everything(sock: socket.socket) -> bytes:
    data = b""
    while part := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        data += part
    return data

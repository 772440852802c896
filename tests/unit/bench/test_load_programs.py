"""The programs that make load, against servers on this machine's loopback."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import fairness

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
RESET = struct.pack("ii", 1, 0)


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A server that calls ``serve`` in a thread for each connection, until its socket is shut down."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=[connection], daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def answer(connection: socket.socket, times: int = 10**9) -> None:
    """Answer requests; reset the connection after so many."""
    with connection:
        for _ in range(times):
            if not (request := connection.recv(4096)):
                return
            connection.sendall(ANSWER)
            if b"Connection: close" in request:
                return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def start(module: str, port: int, *arguments: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", module, "127.0.0.1", str(port), *map(str, arguments)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def test_a_client_whose_requests_are_all_answered_loses_nothing() -> None:
    with server(answer) as listener, start("bench.client", port_of(listener), 3, 2, 2) as client:
        counted = json.loads(client.communicate()[0])

    assert (counted["lost"], counted["refused"]) == (0, 0)
    assert counted["connections"] >= 7
    assert counted["answers"] >= 7 + 3, "each idle connection has one more request at the end"


def test_a_client_counts_idle_connections_that_are_reset() -> None:
    reset = threading.Event()

    def serve(connection: socket.socket) -> None:
        answer(connection, times=1)
        if connection.fileno() < 0:
            reset.set()

    with server(serve) as listener, start("bench.client", port_of(listener), 1, 0, 0) as client:
        reset.wait()
        counted = json.loads(client.communicate()[0])

    assert counted["lost"] >= 1
    assert counted["lost: ECONNRESET"] >= 1


def test_a_client_counts_connections_that_are_refused() -> None:
    with server(answer) as listener:
        client = start("bench.client", port_of(listener), 0, 0, 1)
    with client:
        # The server's socket is closed, so each further connection is refused.
        counted = json.loads(client.communicate()[0])

    assert counted["refused"] >= 1


def test_a_greedy_client_connects_until_it_is_told_to_end() -> None:
    with (
        server(lambda connection: connection.close()) as listener,
        start("bench.greedy", port_of(listener), 2) as greedy,
    ):
        assert int(greedy.communicate()[0]) >= 2


def test_slow_readers_read_on_all_connections_until_they_are_told_to_end() -> None:
    with (
        server(lambda connection: connection.sendall(b"x" * 100_000)) as listener,
        start("bench.slow_readers", port_of(listener), 3) as readers,
    ):
        assert int(readers.communicate()[0]) >= 0


def test_the_rate_of_streams_is_read_from_the_sums_of_intervals() -> None:
    report = """\
[  5]   0.00-0.50   sec   596 MBytes  10000 Mbits/sec    0   3.25 MBytes
[SUM]   0.00-0.50   sec  1192 MBytes  20000 Mbits/sec    0
[SUM]   0.50-1.00   sec  1192 MBytes  30000 Mbits/sec    0
- - - - - - - - - - - - - - - - - - - - - - - - -
[SUM]   0.00-1.00   sec  2384 MBytes  25000 Mbits/sec    0             sender
[SUM]   0.00-1.00   sec  2384 MBytes  25000 Mbits/sec                  receiver
"""
    assert fairness.sums(report) == [20000, 30000]

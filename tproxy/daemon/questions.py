"""Passes an operator's question on to the workers, and gives the command the ends where answers come out.

The daemon reads no answer: a worker that answers slowly, or never, keeps nobody else waiting. ``asking`` is
the command's side, ``worker.questions`` the workers'.
"""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack

from tproxy.daemon.client import ANSWERS, Json
from tproxy.daemon.server import Client
from tproxy.daemon.workers import Workers
from tproxy.worker import orders

log = logging.getLogger(__name__)

# The kind of question after which connections are gone (``worker.inspection``).
KILL = "kill"

# SCM_MAX_FD of the kernel is 253.
MOST_WORKERS = 250


def pass_on(workers: Workers, kind: str, words: list[str], client: Client) -> None:
    """Ask all workers, and answer the client: which were asked, and beside it the end for each of these.

    Workers of another version cannot be asked; they are listed, too.
    """
    if kind == KILL:
        log.info("an operator ends connections: %s", " ".join(words))
    asked: list[list[int]] = []
    unasked: list[list[int]] = []
    with ExitStack() as ends:
        fds: list[int] = []
        for worker in workers.everyone():
            if not worker.understands or len(fds) >= MOST_WORKERS:
                unasked.append([worker.pid, worker.draining])
                continue
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            except OSError as error:  # EMFILE
                log.warning("worker %d cannot be asked: %s", worker.pid, error.strerror)
                unasked.append([worker.pid, worker.draining])
                continue
            ends.enter_context(ours)
            with theirs:
                worker.tell(orders.Question(kind, tuple(words)), theirs.fileno())
            asked.append([worker.pid, worker.draining])
            fds.append(ours.fileno())
        answer: Json = {"format": ANSWERS, "asked": asked, "unasked": unasked}
        client.answer_with(answer, fds)

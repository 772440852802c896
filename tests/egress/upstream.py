"""A web server of a test's own, which stands for a site on the internet: it counts, and it can misbehave."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Site:
    """What the server has, by path, and how it behaves. Everything may be changed while it runs."""

    pages: dict[str, Reply] = field(default_factory=dict)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    limited: int = 0  # so many requests are answered with 429
    retry_after: str = "0"
    delay: float = 0.0  # seconds before each answer
    cut: int = 0  # bytes after which the next whole body breaks off, once
    gate: threading.Event | None = None  # bodies wait for it after their first half
    answer: Callable[[str, Message], Reply | None] = lambda path, headers: None
    dead: bool = False
    url: str = ""
    stop: Callable[[], None] = lambda: None
    at_end: list[Callable[[], None]] = field(default_factory=list)  # of what stands behind the server

    def put(self, path: str, body: bytes, **headers: str) -> str:
        """Offer this content, and return its address."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.pages[path] = Reply(body, headers={"ETag": etag, **named})
        return self.url + path.lstrip("/")

    def count(self, part: str = "") -> int:
        """Return how many requests there were for paths with this text in them."""
        return sum(part in path for path, _ in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def site() -> Iterator[Site]:
    """Run a server on a free port of 127.0.0.1 until the block ends."""
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.requests.append((self.path, dict(self.headers)))
            if found.dead:  # also on connections that are open
                self.close_connection = True
                return
            if found.delay:
                time.sleep(found.delay)
            if found.limited:
                found.limited -= 1
                self._send(429, {"Retry-After": found.retry_after}, b"")
                return
            reply = found.answer(self.path, self.headers) or found.pages.get(
                unquote(urlsplit(self.path).path)
            )
            if reply is None:
                self._send(404, {}, b"no such thing")
                return
            if "ETag" in reply.headers and self.headers.get("If-None-Match") == reply.headers["ETag"]:
                self._send(304, {"ETag": reply.headers["ETag"]}, b"")
                return
            body, status, headers = reply.body, reply.status, dict(reply.headers)
            start = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            if start.isdecimal() and status == 200:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[int(start) :], 206
            self._send(status, headers, body)

        do_HEAD = do_GET

        def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if found.cut and len(body) > found.cut:
                body, found.cut = body[: found.cut], 0
                self.close_connection = True
            if found.gate is not None and len(body) > 1000:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                found.gate.wait(100)
                body = body[len(body) // 2 :]
            with suppress(OSError):  # the client has gone
                self.wfile.write(body)

        def log_message(self, text: str, *values: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def stop() -> None:
            found.dead = True
            server.shutdown()
            server.server_close()

        found.stop = stop
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
            for end in found.at_end:
                end()


@pytest.fixture
def upstream() -> Iterator[Site]:
    with site() as found:
        yield found

"""A small client of redis: as much of its protocol RESP as the import needs (redis.io)."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from tproxy.errors import TproxyError, quoted, to_ascii

PATIENCE = 15.0  # seconds for each answer
MOST_TEXT = 16 << 20  # bytes of one value; a service has some hundred
MOST_LIST = 1 << 20  # values in one answer

_AT_ONCE = 500  # keys that are asked for in one question


class RedisError(TproxyError):
    """The redis cannot be reached, or does not answer as one."""


class Redis:
    """A connection, for a ``with`` block. ``url`` is ``redis://HOST[:PORT][/DATABASE]``."""

    def __init__(self, url: str, password: str = "") -> None:
        parts = urlsplit(url)
        try:
            address = parts.hostname or "", parts.port or 6379
        except ValueError:
            address = "", 0
        database = parts.path.strip("/") or "0"
        if parts.scheme != "redis" or not address[0] or not database.isdecimal():
            raise RedisError(f"{quoted(url)} is not redis://HOST[:PORT][/DATABASE]")
        if parts.password or parts.username:
            raise RedisError("a password belongs into a file: --password-file FILE")
        self.url = url
        self._address = address
        self._first: list[Sequence[str]] = [("AUTH", password)] if password else []
        self._first += [("SELECT", database)] if database != "0" else []

    def __enter__(self) -> Redis:
        try:
            self._socket = socket.create_connection(self._address, PATIENCE)
        except OSError as error:
            raise RedisError(f"{self.url}: {error.strerror or error}") from error
        self._file = self._socket.makefile("rb")
        try:
            for command in self._first:
                self.ask(*command)
        except RedisError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> Any:
        """Send one command; return its answer. Raises RedisError."""
        parts = [each.encode() for each in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in parts)
        try:
            self._socket.sendall(request)
            return self._answer()
        except OSError as error:
            raise RedisError(f"{self.url}: {error.strerror or error}") from error
        except ValueError as error:
            raise RedisError(f"{self.url}: this is no answer of redis") from error

    def strings(self, *patterns: str) -> dict[str, str]:
        """Return all keys that fit one of the patterns, with their values. Raises RedisError."""
        found: dict[str, str] = {}
        keys = dict.fromkeys(key for pattern in patterns for key in self._scan(pattern))
        listed = list(keys)
        for at in range(0, len(listed), _AT_ONCE):
            some = listed[at : at + _AT_ONCE]
            values = self.ask("MGET", *some)
            found |= {key: value for key, value in zip(some, values, strict=True) if value is not None}
        return found

    def _scan(self, pattern: str) -> Iterator[str]:
        cursor = "0"
        while True:
            cursor, keys = self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", str(_AT_ONCE))
            yield from keys
            if cursor == "0":
                return

    def _answer(self, depth: int = 0) -> Any:
        line = self._file.readline(65536)
        if not line.endswith(b"\r\n"):
            raise RedisError(f"{self.url}: it ended the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(f"{self.url}: {to_ascii(rest.decode(errors='replace'))}")
        if kind in (b"+", b":"):
            return rest.decode(errors="replace")
        size = int(rest)
        if size < 0:
            return None
        if kind == b"$" and size <= MOST_TEXT:
            data = self._file.read(size + 2)
            if len(data) != size + 2:
                raise RedisError(f"{self.url}: it ended the connection")
            return data[:-2].decode(errors="replace")
        if kind == b"*" and size <= MOST_LIST and depth < 3:
            return [self._answer(depth + 1) for _ in range(size)]
        raise ValueError(kind)

"""A client of etcd v3 by its JSON gateway (etcd's documentation, "Why gRPC gateway").

Keys and values are bytes, in base64. A user logs in with a password, and gets a token for later requests;
etcd forgets tokens when it restarts, and refuses old ones after a change of roles. Then the client logs in
once more. A log-in is dear (bcrypt), so it is made only when a request was refused for its token.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp

from tproxy.errors import to_ascii
from tproxy.fleet.stores.base import Compacted, Denied, StoreError

# Seconds for one request. A slow store is not waited for longer: the host has what it needs.
PATIENCE = 15.0

MOST_LINE = 8 << 20  # bytes of one answer of a watch; etcd's own limit for a value is 1.5 MiB

# What etcd says of a token that it does not know (any more). 3.4 has no code of its own for these.
_STALE = ("invalid auth token", "auth store is old", "user name is empty", "revision of auth store")
_DENIED = ("permission denied", "authentication failed", "password")

Json = dict[str, Any]


class Account(NamedTuple):
    """Who asks, and how TLS is done. Paths are those of files in PEM; "" for none."""

    user: str = ""
    password: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""


class Event(NamedTuple):
    """A change of a key; ``value`` is None where it was deleted."""

    key: str
    value: str | None
    revision: int


class EtcdClient:
    """One user's connection to a cluster. ``endpoints`` are URLs, tried in turn after a failure.

    ``session`` is one that several clients share, as simulations do.
    """

    def __init__(
        self, endpoints: Sequence[str], account: Account, session: aiohttp.ClientSession | None = None
    ) -> None:
        self._endpoints = list(endpoints)
        self._account = account
        self._session = session
        self._own = session is None
        self._token = ""
        self._login = asyncio.Lock()
        self.logins = 0

    async def ask(self, path: str, body: Json) -> Json:
        """Send one request, and return the answer. Raises StoreError."""
        answer = await self._ask(path, body, self._token)
        if answer is None:
            await self._log_in(self._token)
            answer = await self._ask(path, body, self._token)
        if answer is None:
            raise Denied(f"{self._endpoints[0]}: the store refuses its own token")
        return answer

    async def watch(self, key: str, range_end: str, revision: int) -> AsyncGenerator[Event, None]:
        """Yield changes from this revision on, until the iterator is closed, which cancels the watch.

        Raises StoreError when the watch ends, and Compacted when the revision is not known any more.
        """
        request = {
            "key": encode(key),
            **({"range_end": encode(range_end)} if range_end else {}),
            "start_revision": str(revision),
        }
        if self._account.user and not self._token:
            await self._log_in("")
        try:
            async with self._stream("/v3/watch", {"create_request": request}) as response:
                async for line in _lines(response.content):
                    for event in self._events(line):
                        yield event
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            self._rotate()
            raise StoreError(f"{self._endpoints[0]}: the watch has ended: {_reason(error)}") from error
        raise StoreError(f"{self._endpoints[0]}: the store has ended the watch")

    async def close(self) -> None:
        if self._own and self._session is not None:
            await self._session.close()
            self._session = None

    def _events(self, line: bytes) -> list[Event]:
        said = json.loads(line)
        if "error" in said:
            error = said["error"]
            message = str(
                error.get("message", error) if isinstance(error, dict) else said.get("message", error)
            )
            if any(each in message for each in _STALE):
                self._token = ""
            raise StoreError(f"{self._endpoints[0]}: {to_ascii(message)}")
        result = said["result"]
        if result.get("compact_revision"):
            raise Compacted(
                f"{self._endpoints[0]}: changes before {result['compact_revision']} are forgotten"
            )
        if result.get("canceled"):
            reason = str(result.get("cancel_reason", "no reason given"))
            if "permission" in reason:
                raise Denied(f"{self._endpoints[0]}: {to_ascii(reason)}")
            self._token = "" if self._account.user else self._token
            raise StoreError(f"{self._endpoints[0]}: the watch was cancelled: {to_ascii(reason)}")
        found = []
        for each in result.get("events", ()):
            pair = each["kv"]
            value = None if each.get("type") == "DELETE" else decode(pair.get("value", ""))
            found.append(Event(decode(pair["key"]), value, int(pair["mod_revision"])))
        return found

    def _stream(self, path: str, body: Json) -> Any:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE)
        return self._post(path, body, self._token, timeout)

    async def _ask(self, path: str, body: Json, token: str) -> Json | None:
        """Return the answer; None where the token is not good any more."""
        if self._account.user and not token and not path.startswith("/v3/auth/authenticate"):
            return None
        try:
            timeout = aiohttp.ClientTimeout(total=PATIENCE)
            async with self._post(path, body, token, timeout) as response:
                said = json.loads(await response.read())
                status = response.status
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            self._rotate()
            raise StoreError(f"{self._endpoints[-1]}: {_reason(error)}") from error
        if status == 200 and isinstance(said, dict):
            return said
        message = str(said.get("message") or said.get("error")) if isinstance(said, dict) else str(said)
        if self._account.user and any(each in message for each in _STALE):
            return None
        kind = Denied if status == 403 or any(each in message for each in _DENIED) else StoreError
        raise kind(f"{self._endpoints[0]}: {to_ascii(message)}")

    def _post(self, path: str, body: Json, token: str, timeout: aiohttp.ClientTimeout) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls(), limit=0)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=1 << 18)
        headers = {"Authorization": token} if token else {}
        url = self._endpoints[0] + path
        return self._session.post(url, data=json.dumps(body), headers=headers, timeout=timeout)

    async def _log_in(self, stale: str) -> None:
        async with self._login:
            if self._token != stale or not self._account.user:
                return  # somebody else has done it
            body = {"name": self._account.user, "password": self._account.password}
            said = await self._ask("/v3/auth/authenticate", body, "")
            if said is None or not isinstance(said.get("token"), str):
                raise Denied(f"{self._endpoints[0]}: the store gave no token to {self._account.user!a}")
            self.logins += 1
            self._token = said["token"]

    def _tls(self) -> ssl.SSLContext | bool:
        if not self._endpoints[0].startswith("https:"):
            return True
        try:
            context = ssl.create_default_context(cafile=self._account.ca or None)
            if self._account.certificate:
                context.load_cert_chain(self._account.certificate, self._account.key or None)
        except (OSError, ssl.SSLError) as error:
            raise StoreError(f"{self._endpoints[0]}: TLS cannot be set up: {error}") from error
        return context

    def _rotate(self) -> None:
        self._endpoints.append(self._endpoints.pop(0))


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # readline() of aiohttp refuses lines that are longer than its buffer.
    rest = b""
    async for part in stream.iter_any():
        rest += part
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MOST_LINE:
            raise ValueError(f"an answer of more than {MOST_LINE} bytes")


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    with suppress(ValueError):
        return base64.b64decode(text).decode()
    return ""  # no text of ours: whoever reads it says so


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    return to_ascii(str(error) or type(error).__name__)

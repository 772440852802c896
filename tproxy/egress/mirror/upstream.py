"""Fetching from upstreams: small documents that change, and large files that do not.

Theory of operation. For each address there is one fetch at a time: who asks meanwhile waits for the same one.
A document is kept with its ETag; when it is old, upstream is asked whether it changed. When upstream is down,
slow or limits us, a kept document is served as it is. A host that failed is left alone for a while, so that
nobody waits for it again and again. Redirects are followed here, each with its address judged anew; a
credential goes to its own host, or to its configured realm, and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from tproxy import __version__
from tproxy.egress.mirror.addresses import Resolver
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.own_addresses import own_addresses
from tproxy.egress.policy.addresses import refused
from tproxy.egress.store.store import Store
from tproxy.errors import TproxyError

# Seconds for which a document is not asked for again. An index changes rarely, and a client that installs
# twenty packages asks for some of them several times.
FRESH = 60

# Seconds after which a client that could have a kept document is not left waiting for upstream.
PATIENCE = 3.0

# Seconds for which a host that could not be reached is left alone.
PAUSE = 15.0

# Seconds that a request waits when upstream says "too many requests"; longer ones fail with that answer.
LONGEST_WAIT = 20.0

REDIRECTS = 5
TRIES = 4  # of one request that is answered with 429, or of one file that breaks off
LARGEST_DOCUMENT = 64 << 20  # bytes; the index of the largest project has some 10 MB

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')

T = TypeVar("T")


class UpstreamError(TproxyError):
    """Upstream gave no usable answer. ``status`` is the one for our client."""

    status = 502


class NotThere(UpstreamError):
    """Upstream says that there is no such thing."""

    status = 404


class TooMany(UpstreamError):
    """Upstream limits us. ``after`` is in seconds."""

    status = 429

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class Flights:
    """Runs one task for each key at a time. A task goes on when whoever asked has gone away."""

    def __init__(self) -> None:
        self._running: dict[object, asyncio.Task[Any]] = {}

    async def share(self, key: object, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the task for this key, which is started unless it runs."""
        task = self.begin(key, start)
        result: T = await asyncio.shield(task)
        return result

    def begin(self, key: object, start: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(start())
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever waits has it; without anyone waiting, it is no news

    async def close(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Upstreams:
    """The client side of the mirror. Must not be made in sealed mode."""

    def __init__(self, settings: Settings, store: Store) -> None:
        assert not settings.sealed
        self._settings, self._store = settings, store
        context = ssl.create_default_context()
        if settings.ca:
            context.load_verify_locations(settings.ca)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Resolver(settings.inner), ssl=context, limit_per_host=8),
            timeout=TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"tproxy-egress/{__version__}"},
        )
        self.flights = Flights()
        self._not_before: dict[str, tuple[float, UpstreamError]] = {}
        self._tokens: dict[tuple[str, str], tuple[float, str]] = {}

    async def close(self) -> None:
        await self.flights.close()
        await self._session.close()

    async def document(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        scope: str = "",
        read: Callable[[], Coroutine[Any, Any, bytes]] | None = None,
    ) -> bytes:
        """Return the content at an address, kept or fetched. Raises UpstreamError when there is neither.

        ``read`` fetches it where a plain request does not do.
        """
        key = key or url
        kept = self._store.document(key)
        if kept is not None and time.time() - kept[0] < FRESH:
            return kept[2]
        task = self.flights.begin(
            ("document", key), lambda: self._refresh(url, key, dict(headers or {}), scope, read)
        )
        if kept is None:
            return await asyncio.shield(task)
        try:
            return await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        except NotThere:
            raise
        except (UpstreamError, TimeoutError, asyncio.TimeoutError):
            return kept[2]

    async def _refresh(
        self,
        url: str,
        key: str,
        headers: dict[str, str],
        scope: str,
        read: Callable[[], Coroutine[Any, Any, bytes]] | None,
    ) -> bytes:
        if read is not None:
            body = await read()
            self._store.keep_document(key, body)
            return body
        kept = self._store.document(key)
        if kept is not None and kept[1]:
            headers["If-None-Match"] = kept[1]
        async with self.get(url, headers, scope=scope) as answer:
            if answer.status == 304 and kept is not None:
                body, etag = kept[2], kept[1]
            else:
                body, etag = await _body(answer), answer.headers.get("ETag", "")
        self._store.keep_document(key, body, etag)
        return body

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET", scope: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield upstream's good answer to a request, after redirects and waiting. Raises UpstreamError.

        ``scope`` is what a registry's token is for (repository:NAME:pull).
        """
        answer = await self._ask(url, dict(headers or {}), method, scope)
        try:
            yield answer
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise UpstreamError(f"{urlsplit(url).hostname} broke off: {_words(error)}") from error
        finally:
            answer.release() if answer.content.at_eof() else answer.close()

    async def _ask(
        self, url: str, headers: dict[str, str], method: str, scope: str
    ) -> aiohttp.ClientResponse:
        host = _host(url)
        first = URL(url, encoded=True)
        target, sent, asked_for_token = first, dict(headers), False
        until, token = self._tokens.get((host, scope), (0.0, ""))
        if until > time.monotonic():
            sent["Authorization"] = f"Bearer {token}"
        tries = redirects = 0
        while True:
            until, error = self._not_before.get(_host(str(target)), (0.0, UpstreamError()))
            if until > time.monotonic():
                raise error
            answer = await self._once(method, target, sent)
            if answer.status in (301, 302, 303, 307, 308):
                answer.close()
                redirects += 1
                location = answer.headers.get("Location", "")
                if redirects > REDIRECTS or not location:
                    raise UpstreamError(f"{host} redirects too often, or to nowhere")
                before, target = target, target.join(URL(location, encoded=True))
                if before.scheme == "https" and target.scheme != "https":
                    raise UpstreamError(f"{host} redirects from https to {target.scheme}")
                if (before.host, before.port) != (target.host, target.port):
                    sent.pop("Authorization", None)
            elif answer.status == 401 and not asked_for_token and target.authority == first.authority:
                answer.close()
                asked_for_token = True
                challenge = answer.headers.get("WWW-Authenticate", "")
                sent["Authorization"] = await self._token(host, challenge, scope)
            elif answer.status in (429, 503):
                answer.close()
                tries += 1
                after = _retry_after(answer.headers.get("Retry-After"), tries)
                if tries >= TRIES or after > LONGEST_WAIT:
                    limited = TooMany(f"{target.host} limits how often we may ask", after)
                    self._not_before[target.authority] = (time.monotonic() + after, limited)
                    raise limited
                await asyncio.sleep(after)
            elif answer.status in (200, 206, 304):
                return answer
            else:
                answer.close()
                kind = NotThere if answer.status in (404, 410) else UpstreamError
                raise kind(f"{host} answered {answer.status} for {first.path}")

    async def _once(self, method: str, target: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        host = target.host or ""
        if target.scheme not in ("http", "https") or not host:
            raise UpstreamError(f"{str(target)!a} is no http or https address")
        if _is_address(host) and refused(host, self._settings.inner, own_addresses()):
            raise UpstreamError(f"{host} is an inner address, which the policy does not name")
        identity = {"Accept-Encoding": "identity", **headers}
        credential = self._settings.credential(str(target))
        if credential is not None and "Authorization" not in headers:
            identity["Authorization"] = _basic(credential.username, credential.password)
        try:
            return await self._session.request(
                method, target, headers=identity, allow_redirects=False, auto_decompress=False
            )
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            failed = UpstreamError(f"{host} cannot be reached: {_words(error)}")
            self._not_before[target.authority] = (time.monotonic() + PAUSE, failed)
            raise failed from error

    async def _token(self, host: str, challenge: str, scope: str) -> str:
        """Ask the token service that a registry names (distribution.github.io, Token authentication)."""
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.get("realm", "")
        if not challenge.lower().startswith("bearer ") or not realm:
            raise UpstreamError(f"{host} wants credentials, and none that are configured fit")
        query = {"service": fields.get("service", ""), "scope": scope or fields.get("scope", "")}
        target = URL(realm).update_query({name: text for name, text in query.items() if text})
        answer = await self._once("GET", target, {})
        try:
            if answer.status != 200:
                raise UpstreamError(f"the token service {URL(realm).host} answered {answer.status}")
            found = await answer.json(content_type=None)
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamError(f"the token service {URL(realm).host} gave no token") from error
        finally:
            answer.close()
        token = found.get("token") or found.get("access_token") if isinstance(found, dict) else None
        if not isinstance(token, str):
            raise UpstreamError(f"the token service {URL(realm).host} gave no token")
        # A token is good for 60 seconds where nothing is said; the last ten are left out.
        lifetime = found.get("expires_in", 60)
        lasts = float(lifetime) if isinstance(lifetime, (int, float)) else 60.0
        self._tokens[host, scope] = (time.monotonic() + lasts - 10, token)
        return f"Bearer {token}"


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_chunked(1 << 16):
        size += len(part)
        if size > LARGEST_DOCUMENT:
            raise UpstreamError(f"{answer.url.host} sent a document of more than {LARGEST_DOCUMENT} bytes")
        parts.append(part)
    return b"".join(parts)


def _retry_after(text: str | None, tries: int) -> float:
    """Return the seconds to wait: what upstream says, or else 0.5, 1, 2 …"""
    if text is not None and text.strip().isdecimal():
        return float(text.strip())
    try:  # a date is allowed too (RFC 9110, 10.2.3)
        return max(0.0, parsedate_to_datetime(text or "").timestamp() - time.time())
    except ValueError:
        pass
    return 0.25 * 2.0**tries


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

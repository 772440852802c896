"""The HTTP server: takes connections, knows who calls, and carries out the answers.

Each answer is written to the ledger before its last byte is sent, and what cannot be recorded is not served.
Whole files go by sendfile(2); files that are still on their way are passed on as they arrive.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import ssl
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_fileresponse import FileResponse

from tproxy.egress.ledger.entries import Event
from tproxy.egress.mirror.answers import Answer, Blob, Body, Denied, Growing, Missing, Request
from tproxy.egress.mirror.deb import Deb
from tproxy.egress.mirror.files import Files
from tproxy.egress.mirror.galaxy import Galaxy
from tproxy.egress.mirror.identity import ProxyHeader, caller_of_squid
from tproxy.egress.mirror.library import Judge, Library
from tproxy.egress.mirror.limiting import Guests
from tproxy.egress.mirror.oci import OCI
from tproxy.egress.mirror.pypi import PyPI
from tproxy.egress.mirror.router import clean_path, route
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.mirror.upstream import TooMany, UpstreamError, Upstreams
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.policy.rules import Limits
from tproxy.egress.store.records import StoreError
from tproxy.egress.store.store import Store
from tproxy.errors import ProtocolError, TproxyError, to_ascii

log = logging.getLogger("tproxy.egress.mirror")

# Connections of all clients together. Each takes some 50 KB.
MOST_CONNECTIONS = 1000

# Seconds in which a stopped mirror lets downloads end.
DRAIN = 5.0

Recorder = Callable[[Event], Awaitable[None]]
Identify = Callable[[web.BaseRequest], Caller]


class Part(Protocol):
    """One kind of things: turns a request into an answer."""

    async def answer(self, request: Request) -> Answer | None: ...


class Mirror:
    """All parts behind one handler. ``record`` writes to the ledger; it raises when that is impossible."""

    def __init__(self, settings: Settings, store: Store, judge: Judge, record: Recorder) -> None:
        self.settings, self.store, self._record = settings, store, record
        self.upstreams = None if settings.sealed else Upstreams(settings, store)
        self.library = Library(settings, store, judge, self.upstreams)
        self._parts: dict[str, Part] = {
            "pypi": PyPI(self.library),
            "oci": OCI(self.library),
            "galaxy": Galaxy(self.library),
            "deb": Deb(self.library),
            "file": Files(self.library),
        }
        self.counts = {"hits": 0, "misses": 0, "denied": 0, "missing": 0, "failed": 0, "served_bytes": 0}

    async def close(self) -> None:
        if self.upstreams is not None:
            await self.upstreams.close()

    async def handle(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Answer one HTTP request of this caller."""
        try:
            host, asked = _request(request, caller)
            answer = await self._answer(host, asked)
        except ProtocolError as error:
            return _text(400, str(error))
        except TooMany as error:
            self.counts["failed"] += 1
            return _text(429, str(error), {"Retry-After": str(max(1, round(error.after)))})
        except UpstreamError as error:
            self.counts["failed"] += 1
            log.warning("%s: %s", to_ascii(request.rel_url.raw_path), error)
            return _text(error.status, str(error))
        except (StoreError, sqlite3.Error) as error:
            self.counts["failed"] += 1
            log.error("%s", error)
            return _text(503, str(error))
        try:
            return await self._carry_out(request, asked, answer)
        except (StoreError, sqlite3.Error) as error:
            log.error("%s", error)
            return _text(503, str(error))
        except Unrecorded as error:
            log.error("%s", error)
            return _text(503, "this cannot be recorded now, so it is not served")

    async def _answer(self, host: str, asked: Request) -> Answer:
        kind, name, path = route(self.settings, host, asked.path)
        if not kind:
            # In sealed mode squid sends every request here, also for plain files at their own addresses.
            urls = (f"{scheme}://{host}{asked.path}" for scheme in ("https", "http"))
            path = next((url for url in urls if self.store.find("file", url, "")), path)
            kind = "file" if "://" in path else ""
        part = self._parts.get(kind)
        if part is not None:
            official = bool(self.settings.kind_of_host(host))
            answer = await part.answer(replace(asked, name=name, path=path, official=official))
            if answer is not None:
                return answer
        return Missing(Artifact("uri", url=f"{host}{asked.path}"), "the mirror has nothing at this path")

    async def _carry_out(
        self, request: web.BaseRequest, asked: Request, answer: Answer
    ) -> web.StreamResponse:
        if isinstance(answer, Body):
            return web.Response(
                body=answer.content,
                status=answer.status,
                headers={"Content-Type": answer.media, **answer.headers},
            )
        if isinstance(answer, Denied):
            self.counts["denied"] += 1
            await self._write(
                Event.of(asked.caller, answer.artifact, "denied", rule=answer.rule, reason=answer.reason)
            )
            return _text(403, f"{_name(answer.artifact)} is denied: {answer.reason}")
        if isinstance(answer, Missing):
            self.counts["missing"] += 1
            await self._write(Event.of(asked.caller, answer.artifact, "missing", reason=answer.reason))
            return _text(404, f"{_name(answer.artifact)}: {answer.reason}")
        if isinstance(answer, Blob):
            self.counts["hits"] += 1
            record = answer.record
            await self._served(asked, answer.artifact, record.sha256, record.origin, record.size)
            return self._whole(answer.record.sha256, answer.media, answer.headers)
        self.counts["misses"] += 1
        return await self._growing(request, asked, answer)

    def _whole(self, sha256: str, media: str, headers: Mapping[str, str]) -> web.StreamResponse:
        path = self.store.blobs.find(sha256)
        if path is None:
            return _text(503, "the file was damaged, and has been set aside: please ask again")
        return FileResponse(path, headers={"Content-Type": media, **headers})

    async def _growing(self, request: web.BaseRequest, asked: Request, answer: Growing) -> web.StreamResponse:
        download = answer.download
        if "Range" in request.headers or download.size is None:
            await download.whole()
            await self._served(asked, answer.artifact, download.sha256, answer.origin, download.arrived)
            return self._whole(download.sha256, answer.media, answer.headers)
        response = web.StreamResponse(headers={"Content-Type": answer.media, **answer.headers})
        response.content_length = download.size
        response.headers["Accept-Ranges"] = "bytes"
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        recorded = False
        try:
            await response.prepare(request)
            async for piece in download.follow():
                if download.ended and not recorded:  # the last bytes, whose hash is known now
                    await self._served(
                        asked, answer.artifact, download.sha256, answer.origin, download.arrived
                    )
                    recorded = True
                await response.write(piece)
            await response.write_eof()
        except (UpstreamError, StoreError, Unrecorded) as error:
            # The head is sent, so the client can learn of it only by an end that comes too early.
            log.warning("%s: %s", to_ascii(request.rel_url.raw_path), error)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _served(self, asked: Request, artifact: Artifact, sha256: str, origin: str, size: int) -> None:
        if asked.method == "HEAD":
            return
        rule = self.library.verdict(asked.caller, artifact).rule
        event = Event.of(
            asked.caller, artifact, "allowed", rule=rule, sha256=sha256, origin=origin, size=size
        )
        if event.purl:
            await self._write(event)
        self.counts["served_bytes"] += size

    async def _write(self, event: Event) -> None:
        try:
            await self._record(event)
        except (OSError, TproxyError) as error:
            raise Unrecorded(f"cannot write to the ledger: {error}") from error


class Unrecorded(TproxyError):
    """An answer could not be written to the ledger."""


def _request(request: web.BaseRequest, caller: Caller) -> tuple[str, Request]:
    """Return the host and the rest of what is asked. Raises ProtocolError."""
    if request.method not in ("GET", "HEAD"):
        raise ProtocolError("only GET and HEAD are allowed")
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        raise ProtocolError("a request has one Host header")
    try:
        path = clean_path(request.rel_url.raw_path)
    except UnicodeDecodeError as error:
        raise ProtocolError("the path is no UTF-8 text") from error
    host = hosts[0].lower().removesuffix(":443").removesuffix(":80")
    accept = ", ".join(request.headers.getall("Accept", []))
    base = f"{request.scheme}://{hosts[0]}"
    return host, Request(request.method, "", path, dict(request.rel_url.query), accept, caller, base)


def _name(artifact: Artifact) -> str:
    return " ".join(filter(None, (artifact.kind, artifact.name or artifact.url, artifact.version)))


def _text(status: int, line: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(text=to_ascii(line) + "\n", status=status, headers=headers)


class Listeners:
    """The sockets of the mirror, each with its own way to know who calls."""

    def __init__(self, mirror: Mirror, limits: Callable[[Caller], Limits] = lambda caller: Limits()) -> None:
        self._guests = Guests(limits)
        self.mirror = mirror  # may be replaced, when the policy's upstreams have changed
        self._servers: list[asyncio.Server] = []
        self._http: list[web.Server] = []
        self._callers: weakref.WeakKeyDictionary[asyncio.BaseTransport, Caller] = weakref.WeakKeyDictionary()

    async def for_guests(self, host: str, port: int) -> int:
        """Listen for connections with a PROXY header. Return the port."""

        def identify(request: web.BaseRequest) -> Caller:
            assert request.transport is not None
            return self._callers[request.transport]

        def known(transport: asyncio.Transport, caller: Caller) -> bool:
            self._callers[transport] = caller
            return self._guests.admit(transport, caller)

        http = self._serve(identify, limited=True)
        return await self._listen(lambda: ProxyHeader(http, known), host, port)

    async def for_squid(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen for squid, which shows its certificate and names the caller in headers."""
        assert context.verify_mode is ssl.CERT_REQUIRED
        return await self._listen(
            self._serve(lambda request: caller_of_squid(request.headers)), host, port, ssl=context
        )

    async def for_clients(self, host: str, port: int, network_of: Callable[[str], str]) -> int:
        """Listen for hosts that are no guests; their network follows from their address."""

        def identify(request: web.BaseRequest) -> Caller:
            address = request.remote or ""
            return Caller(network=network_of(address), address=address)

        return await self._listen(self._serve(identify), host, port)

    def _serve(self, identify: Identify, *, limited: bool = False) -> web.Server:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            caller = identify(request)
            if not limited:
                return await self.mirror.handle(request, caller)
            with self._guests.sending(request.transport, caller) as slowed:
                answer = await self.mirror.handle(request, caller)
                if slowed:  # the whole answer is sent here; otherwise the server does it after this function
                    await answer.prepare(request)
                    await answer.write_eof()
                return answer

        http = web.Server(handle, access_log=None, keepalive_timeout=60)
        self._http.append(http)
        return http

    async def _listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, **more: Any
    ) -> int:
        server = await asyncio.get_running_loop().create_server(
            factory, host, port, backlog=MOST_CONNECTIONS, reuse_address=True, **more
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for http in self._http:
            with suppress(asyncio.TimeoutError):
                await http.shutdown(DRAIN)


def squid_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return the TLS context of squid's port: only who shows a certificate of this authority gets in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context

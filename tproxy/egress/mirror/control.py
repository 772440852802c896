"""The mirror's control interface: HTTP on a UNIX socket that only root may open.

| request | effect |
| --- | --- |
| GET /status | counts, bytes, serial |
| GET /kept | what is kept in advance |
| POST /kept?kind=&name= | keep something in advance |
| DELETE /kept?kind=&name= | keep it no longer |
| POST /update | fetch what is kept, or one ?kind=&name=; 409 with the first one's name while an update runs |
| GET /wanted | the want list |
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from tproxy.egress.gather.lists import Targets
from tproxy.egress.mirror import keeping
from tproxy.egress.mirror.server import Mirror
from tproxy.errors import TproxyError


class Control:
    """The interface on a socket. ``mirror`` returns the mirror as it is now."""

    def __init__(self, mirror: Callable[[], Mirror], targets: Targets = Targets()) -> None:  # noqa: B008
        self._mirror, self._targets = mirror, targets
        application = web.Application()
        application.router.add_get("/status", self._status)
        application.router.add_get("/kept", self._kept)
        application.router.add_post("/kept", self._keep)
        application.router.add_delete("/kept", self._release)
        application.router.add_post("/update", self._update)
        application.router.add_get("/wanted", self._wanted)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, path: Path) -> None:
        """Listen at ``path``, with mode 0600."""
        path.unlink(missing_ok=True)
        await self._runner.setup()
        before = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(path)).start()
        finally:
            os.umask(before)

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        mirror = self._mirror()
        store = mirror.store
        return web.json_response(
            {
                "mode": "sealed" if mirror.settings.sealed else "dmz",
                "serial": store.serial(),
                "bytes": store.used(),
                "quota": store.quota,
                "room": store.room(),
                "kept": len(store.kept()),
                "wanted": len(store.wanted()),
                **mirror.counts,
            }
        )

    async def _kept(self, request: web.Request) -> web.Response:
        return web.json_response([{"kind": kind, "name": name} for kind, name in self._mirror().store.kept()])

    async def _keep(self, request: web.Request) -> web.Response:
        kind, name = _named(request)
        try:
            added = keeping.add(self._mirror().store, kind, name)
        except TproxyError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.json_response({"added": added}, status=201 if added else 200)

    async def _release(self, request: web.Request) -> web.Response:
        if not keeping.remove(self._mirror().store, *_named(request)):
            raise web.HTTPNotFound(text="this is not kept\n")
        return web.json_response({"removed": True})

    async def _update(self, request: web.Request) -> web.Response:
        only = _named(request) if request.query else None
        try:
            missing = await asyncio.to_thread(
                keeping.update, self._mirror().settings, self._targets, only=only
            )
        except keeping.Busy as error:
            return web.json_response({"error": str(error)}, status=409)
        except TproxyError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.json_response({"missing": missing}, status=502 if missing else 200)

    async def _wanted(self, request: web.Request) -> web.Response:
        return web.json_response(self._mirror().store.wanted())


def _named(request: web.Request) -> tuple[str, str]:
    kind, name = request.query.get("kind", ""), request.query.get("name", "")
    if not kind or not name:
        raise web.HTTPBadRequest(text="kind and name are needed\n")
    return kind, name

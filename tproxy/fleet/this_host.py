"""This host, for its follower: what `tproxy refresh` does, and what the kernel and the daemon know."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tproxy.config import joined
from tproxy.config.file import DOCUMENT, required
from tproxy.daemon import client
from tproxy.errors import ConfigError, ProcessError, TproxyError
from tproxy.fleet import presence, receipts
from tproxy.fleet.document import HOST, Document
from tproxy.fleet.presence import Guest
from tproxy.fleet.receipts import Effect
from tproxy.log import output
from tproxy.operations import refresh

_COUNTED = ("open", "total", "bytes_to_guest")


class ThisHost:
    """The host on which this runs. ``config`` is the path of its file; None searches the usual places."""

    def __init__(self, config: str | None) -> None:
        self._config = config

    def apply(self, document: Document, expired: bool) -> Effect:
        now = time.time()
        try:
            path = required(self._config, os.environ)
            applied = refresh.apply(joined.load(path))
        except (TproxyError, OSError) as error:
            return Effect(receipts.FAILED, (str(error),), at=now)
        state = receipts.FAILED if applied.failures else receipts.EXPIRED if expired else receipts.APPLIED
        errors = tuple(each for each in applied.warnings if DOCUMENT in (each.origin, path))
        return Effect(state, tuple(applied.failures), errors, applied.counts, now)

    def guests(self, before: Sequence[Guest]) -> list[Guest]:
        output.reopen()  # the log may have been rotated: this is called often enough
        return presence.look(before, time.time())

    def counters(self) -> Mapping[str, Any]:
        try:
            found = client.status()
        except ProcessError:
            found = None
        if found is None:
            return {}
        bridges = found["bridges"].values()
        routes = {each["id"]: _counts(each) for bridge in bridges for each in bridge.get("routes", ())}
        services: dict[str, dict[str, int]] = {}
        for each in (one for bridge in bridges for one in bridge["services"]):
            name = each["name"] or f"{each['port']}/{each['protocol']}"
            known = services.setdefault(name, dict.fromkeys(_COUNTED, 0))
            for key in _COUNTED:
                known[key] += each[key]
        return {"connections": found["connections"], "routes": routes, "services": services}


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    return {key: found[key] for key in (*_COUNTED, "bytes_to_client")}


def name_of(given: str | None) -> str:
    """Return the name that documents have for this host. Raises ConfigError for one that none can have."""
    name = given or os.uname().nodename
    if not re.fullmatch(HOST.pattern, name):
        raise ConfigError(f"{name!a} is no host name: give --host NAME")
    return name

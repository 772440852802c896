"""Requests of tests to a mirror, where no client program is needed."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from tests.egress.running import Running


def get(url: str, accept: str = "*/*", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Return status, content and headers of an answer."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(url, headers={"Accept": accept, **named})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def arrives(url: str) -> bool:
    """Tell whether a whole good answer arrives."""
    try:
        return get(url)[0] == 200
    except (OSError, http.client.IncompleteRead):
        return False


async def expire(mirror: Running) -> None:
    """Make all kept documents old, so that upstream is asked again."""
    mirror.store._database.execute("UPDATE documents SET fetched = 0")


async def wanted(mirror: Running) -> list[tuple[str, str, str]]:
    """Return kind, name and version of what is on the want list."""
    return [(each["kind"], each["name"], each["version"]) for each in mirror.store.wanted()]

"""Decides what a request is about: by the host's name as squid passes it on, or by the path at our own port.

At our own port: /pypi/simple/NAME/, /deb/HOST/PATH/dists/…, /v2/…, /galaxy/api/…, and /files/https/HOST/PATH.
At an official site's name the path is the site's own.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from tproxy.egress.mirror.settings import Settings
from tproxy.errors import ProtocolError


def clean_path(raw: str) -> str:
    """Return a request's path, decoded. Raises ProtocolError for one that means different things to others.

    These are ".." and "." between slashes, encoded slashes, backslashes and control characters.
    """
    lower = raw.lower()
    if not raw.startswith("/") or any(code in lower for code in ("%2f", "%5c", "%25", "\\")):
        raise ProtocolError("the path holds an encoded slash, a backslash or an encoded percent sign")
    path = unquote(raw, errors="strict")
    if not path.isprintable():
        raise ProtocolError("the path holds control characters")
    if any(part in (".", "..") for part in path.split("/")) or "//" in path:
        raise ProtocolError('the path holds ".", ".." or two slashes')
    return path


def route(settings: Settings, host: str, path: str) -> tuple[str, str, str]:
    """Return (kind, name, path within it). ``name`` is a registry or a repository, where the host tells it.

    The kind is "" for what the mirror does not know.
    """
    kind = settings.kind_of_host(host)
    if kind == "pypi":
        return kind, "", _below(settings.pypi, path, "/simple/")
    if kind == "galaxy":
        return kind, "", _below(settings.galaxy, path, "/")
    if kind == "oci":
        return kind, settings.registry_of_host(host), path
    if kind == "deb":
        return (kind, *_repository(settings, f"{host}{path}"))
    if path.startswith("/v2/") or path == "/v2":
        return "oci", "", path
    first, _, rest = path[1:].partition("/")
    if first in ("pypi", "galaxy"):
        return first, "", "/" + rest
    if first == "deb":
        return ("deb", *_repository(settings, rest))
    scheme, _, rest = rest.partition("/")
    if first == "files" and scheme in ("http", "https") and rest:
        return "file", "", f"{scheme}://{rest}"
    for url in settings.files:
        if url.partition("://")[2] == host + path:
            return "file", "", url
    return "", "", path


def _repository(settings: Settings, address: str) -> tuple[str, str]:
    for name in sorted(settings.repositories, key=len, reverse=True):
        if address.startswith(name + "/"):
            return name, address[len(name) :]
    return "", "/" + address


def _below(url: str, path: str, ours: str) -> str:
    """Return a site's path as ours: what begins with the path of ``url`` begins with ``ours``."""
    start = urlsplit(url).path
    return ours + path[len(start) :] if path.startswith(start) else path

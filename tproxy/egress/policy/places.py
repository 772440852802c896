"""What a URL is: splits it into parts that cannot be misunderstood, and finds the artifact behind it.

Client, squid, mirror and origin server may read an unusual URL in different ways. So one that has two
readings is refused before any rule looks at it: ``..``, an encoded slash, a backslash, a user's name, and the
like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion

from tproxy.config.values import HOST_NAME
from tproxy.egress.model import Artifact
from tproxy.egress.policy.rules import Upstreams

PORTS = {"http": 80, "https": 443}

_LONGEST = 8192  # characters; longer than squid's own limit for clients that behave
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)+")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")

# Names of Docker Hub's hosts: an image is called docker.io/library/alpine everywhere else.
HUB = ("docker.io", "registry-1.docker.io", "index.docker.io", "auth.docker.io")


class NotClear(ValueError):
    """The reason why a URL is refused, as the end of a sentence that begins with the URL."""


@dataclass(frozen=True)
class Place:
    """A URL in parts: scheme, host in lower case, port, decoded path and query as it is."""

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @property
    def address(self) -> str:
        """The URL in the one way that rules are compared with."""
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}" + (f"?{self.query}" if self.query else "")


def parse(url: str) -> Place:
    """Return the parts of an absolute URL. Raises NotClear."""
    if len(url) > _LONGEST:
        raise NotClear("is too long")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise NotClear("has characters that a URL may not have")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in PORTS:
        raise NotClear("is not an http:// or https:// URL")
    if "#" in url:
        raise NotClear("has a fragment")
    host, port = _authority(re.split("[/?]", rest, maxsplit=1)[0], PORTS[scheme])
    parts = urlsplit(url)
    return Place(scheme, host, port, _path(parts.path or "/"), _query(parts.query))


def _authority(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.lower().partition(":")
    host = host.removesuffix(".")
    if colon and not re.fullmatch("[1-9][0-9]{0,4}", port):
        raise NotClear("has no usable host and port")
    if not re.fullmatch(HOST_NAME, host):
        raise NotClear("names no host" if "@" not in text else "has a user's name")
    return host, int(port) if colon else default


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise NotClear("has an unusual path")
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise NotClear("has a broken escape in its path")
    if re.search(r"%(2f|5c|2e|25|0.|1.|7f|3b|23|3f)", text, re.IGNORECASE):
        raise NotClear("has an encoded separator in its path")
    try:
        path = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise NotClear("has a path that is no UTF-8 text") from None
    segments = path.split("/")[1:]
    if any(each in (".", "..") or each.startswith((".;", "..;")) for each in segments):
        raise NotClear("has . or .. in its path")
    if "" in segments[:-1]:
        raise NotClear("has an empty part in its path")
    return path


def _query(text: str) -> str:
    if not _QUERY.fullmatch(text) or re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise NotClear("has an unusual query")
    return text


def check_pattern(pattern: str) -> None:
    """Raise NotClear unless a request can match this pattern of URLs."""
    scheme, separator, rest = pattern.partition("://")
    if not separator or scheme not in PORTS:
        raise NotClear("is not an http:// or https:// URL")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "*" in host and not host.startswith("*."):
        raise NotClear("has a * in its host that is not the whole first part")
    if "/" not in rest:
        raise NotClear("has no path: write at least / behind the host")
    parse(f"{scheme}://{rest.replace('*', 'x', 1) if host.startswith('*') else rest}")


def matches(pattern: str, place: Place) -> bool:
    """Return whether a URL matches a pattern.

    In a path "*" stands for anything but "/", and in a host for one label.
    A query matches only where the pattern has one.
    """
    wanted, _, query = pattern.partition("?")
    if place.query and not (query and _regex(query, "[^#]*").fullmatch(place.query)):
        return False
    if query and not place.query:
        return False
    scheme, _, rest = wanted.partition("://")
    host, slash, path = rest.partition("/")
    host, colon, port = host.lower().partition(":")
    expected = int(port) if colon else PORTS[scheme]
    return (
        (scheme, expected) == (place.scheme, place.port)
        and host_matches(host, place.host)
        and _regex(slash + unquote(path), "[^/]*").fullmatch(place.path) is not None
    )


def host_matches(pattern: str, host: str) -> bool:
    """Return whether a host's name matches one of the policy, in which "*" stands for one label."""
    return pattern == host or ("*" in pattern and _regex(pattern, "[^.]+").fullmatch(host) is not None)


def _regex(pattern: str, star: str) -> re.Pattern[str]:
    return re.compile(star.join(map(re.escape, pattern.split("*"))), re.DOTALL)


def artifacts(place: Place, upstreams: Upstreams) -> Iterator[Artifact]:
    """Yield what a URL of an official site stands for; nothing for other sites."""
    plain = place.address.partition("?")[0]
    yield from _pypi(plain, place, upstreams)
    yield from _deb(plain, upstreams)
    yield from _oci(place, upstreams)
    yield from _galaxy(plain, place, upstreams)


def artifact_at(url: str, upstreams: Upstreams) -> Artifact:
    """Return what a URL stands for, for records; for other sites, and for unclear ones, the URL itself."""
    try:
        found = next(artifacts(parse(url), upstreams), None)
    except NotClear:
        found = None
    return found or Artifact("uri", url=url)


def behind(url: str, prefix: str) -> str | None:
    """Return the rest of a URL behind a prefix; None when it has another.

    http and https are the same site here.
    """
    url, prefix = (each.removeprefix("https://").removeprefix("http://") for each in (url, prefix))
    return url.removeprefix(prefix) if url.startswith(prefix) else None


def _pypi(plain: str, place: Place, upstreams: Upstreams) -> Iterator[Artifact]:
    if place.query or (place.scheme != "https" and upstreams.pypi_index.startswith("https:")):
        return
    rest = behind(plain, upstreams.pypi_index)
    if rest and re.fullmatch("[A-Za-z0-9._-]+/?", rest):
        yield Artifact("pypi", canonicalize_name(rest.rstrip("/")), url=place.address)
    for prefix in upstreams.pypi_files:
        if rest := behind(plain, prefix):
            yield from pypi_file(rest.rpartition("/")[2], place.address)


def pypi_file(filename: str, url: str = "") -> Iterator[Artifact]:
    """Yield the project and version of a wheel, a source archive, or the metadata or signature of one."""
    stem = re.sub(r"(\.metadata|\.asc)$", "", filename)
    try:
        if stem.endswith(".whl"):
            name, version = parse_wheel_filename(stem)[:2]
        else:
            name, version = parse_sdist_filename(stem)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return
    yield Artifact("pypi", name, str(version), filename, url)


def _deb(plain: str, upstreams: Upstreams) -> Iterator[Artifact]:
    for prefix in upstreams.deb:
        rest = behind(plain, prefix)
        if rest is None:
            continue
        if found := re.fullmatch(r"dists/([^/]+(?:/updates)?)/(.+)", rest):
            # "version" of an index is its suite.
            yield Artifact("deb", "", found[1], found[2].rpartition("/")[2], plain)
        elif found := re.fullmatch(
            r"pool/(?:[^/]+/)+([a-z0-9][a-z0-9.+-]+)_([^/_]+)_[a-z0-9-]+\.u?deb", rest
        ):
            yield Artifact("deb", found[1], unquote(found[2]), rest.rpartition("/")[2], plain)


def _oci(place: Place, upstreams: Upstreams) -> Iterator[Artifact]:
    registry = _registry(place, upstreams)
    if registry is None:
        return
    if place.path in ("/v2/", "/v2"):
        yield Artifact("oci", registry + "/", url=place.address)
    name = r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    if found := re.fullmatch(
        rf"/v2/({name})/(manifests|blobs|tags|referrers)/([A-Za-z0-9._:-]+)", place.path
    ):
        repository, part, reference = found.groups()
        digest = reference.removeprefix("sha256:") if reference.startswith("sha256:") else ""
        version = reference if part == "manifests" else ""
        yield Artifact("oci", f"{registry}/{repository}", version, part, place.address, digest)
    if place.path in ("/token", "/v2/auth"):
        scopes = parse_qs(place.query).get("scope", [])
        for scope in scopes if len(scopes) == 1 else []:
            if found := re.fullmatch(rf"repository:({name}):pull", scope):
                yield Artifact("oci", f"{registry}/{found[1]}", "", "token", place.address)


def _registry(place: Place, upstreams: Upstreams) -> str | None:
    if place.scheme != "https":
        return None
    site = place.host if place.port == PORTS["https"] else f"{place.host}:{place.port}"
    for name, url in upstreams.oci.items():
        home = url.removeprefix("https://").removeprefix("http://").partition("/")[0]
        if site in (name, home) or (name == "docker.io" and site in HUB):
            # containerd names the registry that it wants in "ns" when it asks a mirror.
            return name
    return None


def _galaxy(plain: str, place: Place, upstreams: Upstreams) -> Iterator[Artifact]:
    rest = behind(plain, upstreams.galaxy)
    if rest is None:
        return
    part = r"[A-Za-z0-9_-]+"
    if rest in ("api", "api/", "api/v1/", "api/v3/"):
        yield Artifact("galaxy", url=place.address)
    elif found := re.match(
        rf"api/v3/(?:plugin/ansible/content/published/)?collections/(?:index/)?({part})/({part})/", rest
    ):
        version = re.search(r"/versions/([0-9][A-Za-z0-9.+-]*)/", rest)
        yield Artifact("galaxy", f"{found[1]}.{found[2]}", version[1] if version else "", url=place.address)
    elif found := re.search(rf"(?:^|/)({part})-({part})-([0-9][A-Za-z0-9.+-]*)\.tar\.gz$", rest):
        yield Artifact("galaxy", f"{found[1]}.{found[2]}", found[3], rest.rpartition("/")[2], place.address)
    elif re.fullmatch("api/v1/roles/[0-9]+/versions/?", rest):
        yield Artifact("galaxy", url=place.address)  # whose number that is, the mirror knows
    elif found := re.fullmatch(rf"api/v1/roles/({part})\.({part})/([A-Za-z0-9.+_-]+)\.tar\.gz", rest):
        yield Artifact("galaxy", f"{found[1]}.{found[2]}", found[3], rest.rpartition("/")[2], place.address)
    elif re.fullmatch("api/v1/roles/?", rest):
        wanted = parse_qs(place.query)
        owner, name = wanted.get("owner__username", []), wanted.get("name", [])
        if len(owner) == len(name) == 1:
            yield Artifact("galaxy", f"{owner[0]}.{name[0]}", url=place.address)

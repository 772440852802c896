"""The answers that the parts of the mirror give, as values. ``server`` carries them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tproxy.egress.mirror.downloads import Download
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.store.records import Record


@dataclass(frozen=True)
class Request:
    """What a client asks: the path is decoded and has no "..", and begins with "/".

    ``name`` is the registry or repository that follows from the host, "" where none does.
    """

    method: str
    name: str
    path: str
    query: Mapping[str, str]
    accept: str
    caller: Caller
    base: str = ""  # the address by which the client reached this port of the mirror
    official: bool = False  # asked under the name of an official site, not at a port of the mirror


@dataclass(frozen=True)
class Body:
    """A small answer, made here. ``judged`` names what it tells about, when that was judged."""

    content: bytes
    media: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Blob:
    """A file in the store."""

    artifact: Artifact
    record: Record
    media: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Growing:
    """A file on its way into the store."""

    artifact: Artifact
    download: Download
    media: str
    origin: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """There is no such thing: upstream does not have it, or the store in sealed mode."""

    artifact: Artifact
    reason: str


@dataclass(frozen=True)
class Denied:
    """The policy does not allow it."""

    artifact: Artifact
    rule: str
    reason: str


Answer = Body | Blob | Growing | Missing | Denied

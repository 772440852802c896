"""Names of nodes, operators and offers, the paths that are made of them, and patterns of names. Pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

from tproxy.config.tunnels import NAMES, OFFER
from tproxy.errors import TproxyError, quoted

ROOT = "/tunnel"
SSH, IN = "ssh", "in"  # the offers with a name of their own: the node's sshd, and its in.sock
SSH_PORT = 22

# As long as a label of DNS: names of nodes are host names at the same time.
_NAME = re.compile(r"[a-z0-9]([a-z0-9_.\-]{0,61}[a-z0-9])?")
_OFFER = re.compile(r"[a-z][a-z0-9\-]{0,31}")


class Offer(NamedTuple):
    """What a node offers: its name, and the port by which an operator asks for it; 0 for ``in``."""

    name: str
    port: int = 0


class Target(NamedTuple):
    """An offer of a node, by name."""

    node: str
    offer: str

    @property
    def path(self) -> str:
        """The path by which SSH knows it."""
        return f"{ROOT}/{self.node}/{self.offer}"


def checked_name(text: str, kind: str) -> str:
    """Return the name of a node or operator in small letters. Raises TproxyError, whose text has ``kind``."""
    name = text.lower()
    if not _NAME.fullmatch(name):
        raise TproxyError(
            f"{quoted(text)} is not the name of {kind}: up to 63 small letters, digits, `_`, `.` and `-`"
        )
    return name


def checked_pattern(text: str) -> str:
    """Return a pattern of names. Raises TproxyError."""
    if not re.fullmatch(NAMES, text):
        raise TproxyError(f"{quoted(text)} is not a name, or a pattern with `*`, `?` and `[...]`")
    return text


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern."""
    return fnmatchcase(name, pattern)


def offer_of(text: str) -> Offer:
    """Return the offer that is written ``NAME:PORT``, ``ssh`` or ``in``. Raises ValueError."""
    if not re.fullmatch(OFFER, text):
        raise ValueError(f"{quoted(text)} is no offer")
    name, _, port = text.partition(":")
    return Offer(name, int(port) if port else SSH_PORT if name == SSH else 0)


def target_of(path: str) -> Target | None:
    """Return what a path of SSH leads to; None for any other path."""
    start, _, rest = path.rpartition(f"{ROOT}/")
    node, _, offer = rest.partition("/")
    if start or not _NAME.fullmatch(node) or not _OFFER.fullmatch(offer):
        return None
    return Target(node, offer)

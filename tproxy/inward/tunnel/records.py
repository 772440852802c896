"""What the gateway keeps of nodes, operators and join tokens: values, and how they are written as JSON. Pure.

Times are in seconds since 1970.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Any, NamedTuple, TypeVar

from tproxy.inward.tunnel import names

WAITING, APPROVED, SUSPENDED = "waiting", "approved", "suspended"

# Bytes of a token: nobody guesses 128 bits.
TOKEN_BYTES = 16


class Node(NamedTuple):
    """A node that has enrolled."""

    name: str
    key: str  # its public key, as OpenSSH writes it, without a comment
    state: str
    enrolled: float
    reason: str = ""  # of a suspension
    token: str = ""  # the id of the token by which it came
    host_keys: tuple[str, ...] = ()  # of its sshd, by which operators know it
    serials: tuple[tuple[int, float], ...] = ()  # of its certificates, and until when they are valid


class Operator(NamedTuple):
    """A person who may use offers of the nodes that fit a pattern."""

    name: str
    nodes: str
    login: str  # the user at nodes
    key: str = ""  # the person's public key; "" until the first login
    token_hash: str = ""  # of the token for the first login; "" when it was used
    token_until: float = 0
    serials: tuple[tuple[int, float], ...] = ()


class Token(NamedTuple):
    """A join token. The token itself is nowhere at the gateway."""

    id: str
    hash: str
    nodes: str
    most: int
    until: float
    approve: bool = False  # whether its nodes need no approval
    revoked: bool = False
    used: tuple[str, ...] = ()  # names of nodes

    def fault(self, name: str, now: float) -> str:
        """Why a node of this name cannot enrol by it; "" if it can."""
        if self.revoked:
            return f"join token {self.id} is revoked"
        if now >= self.until:
            return f"join token {self.id} has expired"
        if not names.fits(name, self.nodes):
            return f"join token {self.id} is for nodes {self.nodes}"
        if name not in self.used and len(self.used) >= self.most:
            return f"join token {self.id} was used for {self.most} nodes, as many as it is for"
        return ""


Record = TypeVar("Record", Node, Operator, Token)


def to_json(record: Node | Operator | Token) -> str:
    return json.dumps(record._asdict(), indent=1) + "\n"


def from_json(kind: type[Record], text: str) -> Record:
    """Return a record. Raises ValueError for what is none; keys of later versions are ignored."""
    said = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("no mapping")
    known = {key: _frozen(value) for key, value in said.items() if key in kind._fields}
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def new_token() -> tuple[str, str]:
    """Return a new token's id, and the token, which begins with the id."""
    id_ = secrets.token_hex(4)
    return id_, f"{id_}.{secrets.token_urlsafe(TOKEN_BYTES)}"


def hash_of(token: str) -> str:
    # A quick hash suffices, since a token is random.
    return hashlib.sha256(token.encode()).hexdigest()


def is_token(token: str, hash_: str) -> bool:
    return hmac.compare_digest(hash_of(token), hash_)

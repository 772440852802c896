"""A document: what one host of a fleet is to have, signed. Pure.

Its text is a comment in the first line, with the signature, and then YAML or JSON: the header (``host``,
``serial``, and perhaps ``not_after``, ``made`` and ``message``) beside the keys of a configuration file. The
signature covers all lines but the first. So a document is one value of a store, which is replaced as a whole,
and a person can read it.

A document is used as a whole or not at all: a line about anything in it that cannot be used refuses it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import yaml

from tproxy import options
from tproxy.config import joined, reader, values
from tproxy.config.file import MAX_BYTES, NOT_AFTER
from tproxy.config.services import Config, Problem
from tproxy.config.values import Unusable
from tproxy.errors import ConfigError, TproxyError
from tproxy.fleet.keys import PublicKey, SecretKey

MARK = "# tproxy document, signed: "

# Signed before each document, so that a signature of ours never fits another kind of content.
_CONTEXT = b"tproxy document 1\n"

HOST = options.Written(r"[A-Za-z0-9]([A-Za-z0-9.\-]{0,251}[A-Za-z0-9])?", "a host name")
MOST_SERIAL = 2**53 - 1  # the largest whole number that every reader of JSON keeps
_HEADER: dict[str, options.Kind] = {
    "host": HOST,
    "serial": options.Number(1, MOST_SERIAL),
    "not_after": options.Moment(),
    "made": options.Moment(),
    "message": options.Text(200),
}
# What makes a document without any entry clear: nothing is wanted, and nothing was forgotten.
EMPTY = "entries"
HEADER = frozenset({*_HEADER, EMPTY})

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(TproxyError):
    """A document is not used. ``errors`` are the faults that have a line in it."""

    def __init__(self, why: str, errors: Sequence[Problem] = ()) -> None:
        super().__init__(why)
        self.errors = tuple(errors)


class Document(NamedTuple):
    """A document that was verified and read. ``text`` is the whole, with its signature.

    ``not_after`` and ``made`` are in seconds since 1970, 0 where there is none.
    """

    host: str
    serial: int
    not_after: int
    made: int
    message: str
    config: Config
    content: Any  # the keys besides the header, comparable
    text: str


def sum_of(text: str) -> str:
    """Return what tells a document from all others: its SHA-256, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def seal(body: str, not_after: int, key: SecretKey) -> str:
    """Return the text of a document with this body, signed."""
    signature = base64.b64encode(key.sign(_CONTEXT + body.encode())).decode()
    return f"{MARK}{key.public.name} {signature}{NOT_AFTER}{not_after}\n{body}"


def verify(text: str, trusted: Iterable[PublicKey]) -> None:
    """Raise Refused unless one of these keys signed the text."""
    head, _, body = text.partition("\n")
    if not head.startswith(MARK):
        raise Refused("it is not signed")
    name, _, rest = head.removeprefix(MARK).partition(" ")
    key = next((each for each in trusted if each.name == name), None)
    if key is None:
        raise Refused(f"it is signed by the key {name[:16]!a}, which is not trusted here")
    try:
        signature = base64.b64decode(rest.partition(NOT_AFTER)[0], validate=True)
    except (binascii.Error, ValueError):
        raise Refused("its signature is no base64") from None
    if not key.verifies(signature, _CONTEXT + body.encode()):
        raise Refused("its signature is wrong: it was changed after it was signed")


def read(text: str, trusted: Iterable[PublicKey] | None, path: str = "document") -> Document:
    """Return the document that this text is. ``path`` is for messages. Raises Refused.

    With None for ``trusted`` the signature is not looked at: for a host's own copy.
    """
    if len(text) > MAX_BYTES:
        raise Refused(f"it is larger than {MAX_BYTES} bytes")
    if trusted is not None:
        verify(text, trusted)
    try:
        config = reader.parse(path, text, thorough=True)
        said, content = _header(text)
    except ConfigError as error:
        raise Refused(str(error)) from error
    except Unusable as fault:
        line = values.line(fault.node) if fault.node is not None else 1
        raise Refused(str(fault), [Problem(line, str(fault))]) from fault
    except RecursionError:
        raise Refused("it contains itself") from None
    if own := sorted(config.said & joined.OWN):
        raise Refused(f"tproxy_{own[0]} can only be in the file of the host itself")
    if config.warnings:
        more = f" (and {len(config.warnings) - 1} more)" if len(config.warnings) > 1 else ""
        raise Refused(f"{config.warnings[0].at(path)}{more}", config.warnings)
    not_after = said.get("not_after", 0)
    if not text.partition("\n")[0].endswith(f"{NOT_AFTER}{not_after}"):
        raise Refused("its first line and its header differ in not_after")
    return Document(
        said["host"],
        said["serial"],
        not_after,
        said.get("made", 0),
        said.get("message", ""),
        config,
        content,
        text,
    )


def _header(text: str) -> tuple[dict[str, Any], Any]:
    """Return the values of the header, and the other keys in a form that can be compared. Raises Unusable."""
    root = yaml.compose(text, Loader=_LOADER)
    if not isinstance(root, yaml.MappingNode):
        raise Unusable("it is no mapping of keys to values")
    said: dict[str, Any] = {}
    content = []
    for key_node, node in root.value:
        key = values.written(key_node, values.STR)
        if key in _HEADER:
            try:
                said[key] = values.parse(_HEADER[key], node)
            except Unusable as fault:
                raise Unusable(f"{key} {values.shown(node)} {fault}", node) from None
        elif key == EMPTY:
            if not isinstance(node, yaml.SequenceNode) or node.value:
                raise Unusable(
                    f"{EMPTY} can only be []: services are in tproxy, routes in tproxy_routes", node
                )
        else:
            content.append((key, plain(node)))
    for key in ("host", "serial"):
        if key not in said:
            raise Unusable(f"{key} is missing")
    if not content and not any(values.written(key, values.STR) == EMPTY for key, _ in root.value):
        raise Unusable(f"it says nothing: that a host is to have nothing is said by {EMPTY}: []")
    return said, sorted(content)


def plain(node: yaml.Node) -> Any:
    """Return a node as tuples and strings that can be compared, as the file has its values."""
    if isinstance(node, yaml.MappingNode):
        return ("map", *((plain(key), plain(value)) for key, value in node.value))
    if isinstance(node, yaml.SequenceNode):
        return ("list", *map(plain, node.value))
    return (node.tag, node.value)

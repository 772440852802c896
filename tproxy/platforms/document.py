"""Reads the XML that a platform hands over: one document of limited size, without a document type.

A document without a type cannot declare entities, by which a small text could become a large one.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from xml.etree.ElementTree import Element

from tproxy.errors import TproxyError

# A domain with hundreds of disks is smaller than 1 MiB.
MAX_BYTES = 4 << 20


class BadDocument(TproxyError):
    """The text that a platform handed over is not the XML that was expected."""


class _Builder(ET.TreeBuilder):
    def doctype(self, *_: object) -> None:
        # The parser calls this before it declares the first entity, so none is ever expanded or fetched.
        raise BadDocument("the XML has a document type, which no platform writes: refused")


def from_stdin(root: str) -> Element:
    """Read the document on standard input, and return its outermost element ``root``. Raises BadDocument."""
    if sys.stdin is None:
        raise BadDocument("standard input is closed")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadDocument(f"standard input cannot be read: {error.strerror}") from None
    return parse(data, root)


def parse(data: bytes, root: str) -> Element:
    """Return the outermost element of a document, which must be called ``root``. Raises BadDocument."""
    if not data.strip():
        raise BadDocument("no XML on standard input")
    if len(data) > MAX_BYTES:
        raise BadDocument(f"the XML is larger than {MAX_BYTES} bytes: refused")
    parser = ET.XMLParser(target=_Builder())
    try:
        parser.feed(data)
        document = parser.close()
    except (ET.ParseError, LookupError, ValueError) as error:  # LookupError, ValueError: encodings
        raise BadDocument(f"not XML: {error}") from None
    if document.tag != root:
        raise BadDocument(f"the XML is a {document.tag!a}, not a {root!a}")
    assert isinstance(document, Element)
    return document

"""XML as a platform hands it over: one document of a sane size, without a type and so without entities."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from xml.etree.ElementTree import Element

from tproxy.errors import TproxyError

# Domains with hundreds of disks stay below 1 MiB.
MAX_BYTES = 4 << 20


class BadDocument(TproxyError):
    """What a platform handed over is not the XML it should be."""


class _Builder(ET.TreeBuilder):
    def doctype(self, *_: object) -> None:
        # Called before the first entity is declared: none is ever expanded, none is ever fetched.
        raise BadDocument("the XML has a document type, which no platform writes: refused")


def from_stdin(root: str) -> Element:
    """The document on standard input, whose outermost element is ``root``."""
    if sys.stdin is None:
        raise BadDocument("standard input is closed")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadDocument(f"standard input cannot be read: {error.strerror}") from None
    return parse(data, root)


def parse(data: bytes, root: str) -> Element:
    if not data.strip():
        raise BadDocument("no XML on standard input")
    if len(data) > MAX_BYTES:
        raise BadDocument(f"the XML is larger than {MAX_BYTES} bytes: refused")
    parser = ET.XMLParser(target=_Builder())
    try:
        parser.feed(data)
        document = parser.close()
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: encodings
        raise BadDocument(f"not XML: {error}") from None
    if document.tag != root:
        raise BadDocument(f"the XML is a {document.tag!a}, not a {root!a}")
    assert isinstance(document, Element)
    return document

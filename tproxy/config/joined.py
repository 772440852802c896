"""The configuration of a host: its file, and the document of its fleet where it has one.

The two join by the rules for entries of one file (docs/contract.md, Document of a fleet): entries of the
host's own file come first, so they win. An option at the top level counts as the host's own file says it;
the document's counts where that file does not have it.
"""

from __future__ import annotations

import os

from tproxy.config import reader
from tproxy.config.file import DOCUMENT, document, text_of
from tproxy.config.route_faults import usable
from tproxy.config.services import Config

# What the host's own file alone decides: to where a gateway may lead, whoever writes to the store.
OWN = frozenset({"gateway_ranges", "gateway_domains"})


def load(path: str | os.PathLike[str]) -> Config:
    """Read the file, and the host's document. Raises ConfigError when one of them cannot be used."""
    path = os.fspath(path)
    return parse(path, None if path == DOCUMENT else text_of(path), document())


def parse(path: str, text: str | None, document_text: str | None) -> Config:
    """Return the configuration of a host. ``text`` is None where the document is its only file.

    ``document_text`` is None where the host has no document, or its time is over.
    """
    if text is None:
        found = reader.parse(path, document_text or "")
        defaults = {field: Config._field_defaults[field] for field in OWN & found.said}
        return found._replace(silent=False, **defaults)
    own = reader.parse(path, text)
    return own if document_text is None else join(own, reader.parse(DOCUMENT, document_text))


def join(own: Config, document: Config) -> Config:
    """Return what the host's own file and its document say together."""
    routes, problems = usable(
        [*own.routes, *(each._replace(origin=document.path) for each in document.routes)]
    )
    warnings = [*own.warnings, *(each._replace(origin=document.path) for each in document.warnings)]
    options = {field: getattr(document, field) for field in document.said - own.said - OWN}
    return own._replace(
        entries=own.entries + tuple(each._replace(origin=document.path) for each in document.entries),
        bridges=own.bridges + document.bridges,
        tunnels=own.tunnels + document.tunnels,
        routes=tuple(routes),
        warnings=(*warnings, *problems),
        silent=False,
        said=own.said | document.said,
        **options,
    )

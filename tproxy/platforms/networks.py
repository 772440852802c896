"""Remembers the bridge of each libvirt network, as the network hook was told it.

The XML of a domain names only the network, not its bridge, before the taps exist and after they are gone. A
hook cannot ask libvirt: libvirt waits for the hook, so both would wait for ever. Each network has a file
below /run, which is empty after a boot, when no network runs either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from tproxy.errors import KernelError
from tproxy.names import stand_in

DIRECTORY = Path("/run/tproxy/libvirt")

# A network can have any name, also "..", so the names of files have a prefix, and "/" is quoted in them.
_PREFIX = "network:"
_MAX_NAME = 200  # of the 255 bytes of a file name; quoting makes six or nine of a letter outside ASCII


def known() -> Mapping[str, str]:
    """Return the bridge of each network that is remembered, by the network's name. Raises KernelError."""
    bridges = {}
    try:
        for path in sorted(DIRECTORY.glob(f"{_PREFIX}*")):  # no error without the directory
            with suppress(FileNotFoundError):  # another hook has just removed it
                bridges[unquote(path.name.removeprefix(_PREFIX))] = path.read_text()
    except OSError as error:
        raise KernelError(f"cannot read {error.filename}: {error.strerror}") from None
    return bridges


def remember(network: str, bridge: str) -> None:
    """Note the bridge of a network. Raises KernelError."""
    path = _path(network)
    draft = path.with_name(f"draft:{os.getpid()}")
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_text(bridge)
        draft.replace(path)  # a concurrent reader sees the old text or the new one, never a part
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise KernelError(f"cannot remember the bridge of network {network!a}: {error.strerror}") from None


def forget(network: str) -> None:
    """Remove the note about a network. Raises KernelError."""
    try:
        _path(network).unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(f"cannot forget network {network!a}: {error.strerror}") from None


def bridge_of(network: str, bridges: Mapping[str, str]) -> str:
    """Return the bridge of a network from what ``known`` returned; "" when it is not there."""
    return bridges.get(network) or bridges.get(stand_in(network), "")


def _path(network: str) -> Path:
    name = quote(network, safe="")
    return DIRECTORY / f"{_PREFIX}{name if len(name) <= _MAX_NAME else quote(stand_in(network), safe='')}"

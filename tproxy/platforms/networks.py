"""Which bridge a libvirt network has, remembered from the network hook's calls.

A domain says only the network's name before its taps are made and after they are gone. libvirt
must not be asked from a hook: it waits for the hook, and the hook would wait for it. A file for each
network, gone with /run at the next boot, like the networks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from tproxy.errors import KernelError
from tproxy.model import stand_in

DIRECTORY = Path("/run/tproxy/libvirt")

# A network may be called like anything, also "..": what is behind the prefix holds no "/".
_PREFIX = "network:"
_MAX_NAME = 200  # of the 255 bytes of a file's name; a letter of another script takes six or nine


def known() -> Mapping[str, str]:
    """The bridge of each network, by the network's name."""
    bridges = {}
    try:
        for path in sorted(DIRECTORY.glob(f"{_PREFIX}*")):  # none where there is no such directory
            with suppress(FileNotFoundError):  # forgotten just now
                bridges[unquote(path.name.removeprefix(_PREFIX))] = path.read_text()
    except OSError as error:
        raise KernelError(f"cannot read {error.filename}: {error.strerror}") from None
    return bridges


def remember(network: str, bridge: str) -> None:
    path = _path(network)
    draft = path.with_name(f"draft:{os.getpid()}")
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_text(bridge)
        draft.replace(path)  # whole or not at all, for whoever reads meanwhile
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise KernelError(f"cannot remember the bridge of network {network!a}: {error.strerror}") from None


def forget(network: str) -> None:
    try:
        _path(network).unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(f"cannot forget network {network!a}: {error.strerror}") from None


def bridge_of(network: str, bridges: Mapping[str, str]) -> str:
    """Of those that are ``known``; empty where that network's is not."""
    return bridges.get(network) or bridges.get(stand_in(network), "")


def _path(network: str) -> Path:
    name = quote(network, safe="")
    return DIRECTORY / f"{_PREFIX}{name if len(name) <= _MAX_NAME else quote(stand_in(network), safe='')}"

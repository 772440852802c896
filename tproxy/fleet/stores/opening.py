"""Opens the store that a URL names, with the credentials in a file."""

from __future__ import annotations

import json
from pathlib import Path

from tproxy.config.services import place
from tproxy.errors import quoted
from tproxy.fleet.stores.base import Store, StoreError
from tproxy.fleet.stores.directory import DirectoryStore

SCHEMES = ("file", "etcd", "etcds", "http", "https")


def store(url: str, credentials: str = "") -> Store:
    """Return the store at ``file:///DIRECTORY``, ``etcd://…`` (also ``http://``), or ``etcds://…``.

    ``credentials`` is the path of a file as `tproxy fleet init` writes it; "" for none. Raises StoreError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise StoreError(
            f"{quoted(url)} names no store: file:///DIRECTORY, etcd://HOST:PORT or etcds://HOST:PORT"
        )
    if scheme == "file":
        if not rest.startswith("/"):
            raise StoreError(f"{quoted(url)}: file:// needs an absolute path, such as file:///srv/fleet")
        return DirectoryStore(rest.rstrip("/") or "/")
    from tproxy.fleet.stores.etcd import EtcdStore  # and aiohttp with it
    from tproxy.fleet.stores.etcd_client import Account

    return EtcdStore(url, Account(**_credentials(Path(credentials))) if credentials else Account())


def _credentials(path: Path) -> dict[str, str]:
    from tproxy.fleet.stores.etcd_client import Account

    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise StoreError(f"{place(str(path))}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{place(str(path))}: this is no JSON") from error
    if not isinstance(found, dict):
        raise StoreError(f"{place(str(path))}: this is no object with user and password")
    for key, value in found.items():
        if key not in Account._fields or not isinstance(value, str):
            known = ", ".join(Account._fields)
            raise StoreError(f"{place(str(path))}: {quoted(str(key))} is none of {known}, or no text")
    return found

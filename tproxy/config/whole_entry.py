"""What keys of an entry of ``tproxy`` mean for each other: an entry whose endpoints are UNIX sockets.

A UNIX socket has no port. So an entry that has nothing else for its endpoints needs no ``remote_port``, and
then needs a ``service_port``, which is that of the endpoints otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tproxy.addresses import UNIX, is_unix
from tproxy.model import UDP

_ADDRESSES, _PORT, _SERVICE_PORT, _PROTOCOL = "remote_addr", "remote_port", "service_port", "protocol"


def missing(addresses: Sequence[str], present: Collection[str]) -> str:
    """Return the key that the entry lacks besides those that each entry needs; "" for none.

    ``addresses`` are those of the entry as they are written, ``present`` are all keys that have a value.
    """
    if _PORT in present:
        return ""
    if not addresses or not all(each.startswith(UNIX) for each in addresses):
        return _PORT
    return "" if _SERVICE_PORT in present else _SERVICE_PORT


def contradiction(said: Mapping[str, Any]) -> str:
    """Return what an entry says that cannot be; "" for nothing."""
    sockets = [each for each in said.get(_ADDRESSES, ()) if is_unix(each)]
    if sockets and UDP in said.get(_PROTOCOL, ()):
        return f"{_PROTOCOL} {UDP} cannot lead to the UNIX socket {_ADDRESSES} {sockets[0]!a}"
    return ""

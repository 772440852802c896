"""Which connections an operator means: by bridge, guest, service, endpoint or id. Pure: no I/O.

A choice is made of words, each a key, ``=`` and a value; several of one key mean any of these. The command
has checked them (``cli.choosing``). Without a word nothing is chosen, and ``all`` chooses everything: so a
word that got lost never ends all connections.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from tproxy.datapath.target import Target
from tproxy.errors import ProtocolError

ALL = "all"

BRIDGE, GUEST, MAC, SERVICE, ID = "bridge", "guest", "mac", "service", "id"
_KEYS = (BRIDGE, GUEST, MAC, SERVICE, ID)


class Choice:
    """Made of words. Raises ProtocolError when they make none."""

    def __init__(self, words: Iterable[str]) -> None:
        values: dict[str, set[str]] = {}
        everything = False
        for word in words:
            key, equals, value = word.partition("=")
            if word == ALL:
                everything = True
            elif key in _KEYS and equals:
                values.setdefault(key, set()).add(value)
            else:
                raise ProtocolError(f"an unknown word of a choice: {word!r:.80}")
        self.nothing = not (values or everything)
        self._bridges = values.get(BRIDGE)
        self._services = values.get(SERVICE)
        self._ids = values.get(ID)
        self._macs = values.get(MAC)
        self._guests = [_network(each) for each in values.get(GUEST, ())]

    def has(self, target: Target, address: str, id_: str) -> bool:
        """Return whether a connection is chosen, as far as this can be told without its MAC."""
        return not (
            self.nothing
            or (self._bridges is not None and target.bridge not in self._bridges)
            or (self._services is not None and self._services.isdisjoint(_names(target)))
            or (self._ids is not None and id_ not in self._ids)
            or (bool(self._guests) and not any(_contains(each, address) for each in self._guests))
        )

    def has_mac(self, mac: str) -> bool:
        """Return whether the guest's MAC is among the chosen ones, or any MAC is chosen."""
        return self._macs is None or mac in self._macs


def _names(target: Target) -> tuple[str, ...]:
    """What an operator can call a service: its name, its port, and the name in metrics and logs."""
    key = target.service.key
    return target.label, str(key.port), key.in_words, target.label.removesuffix(f":{key.in_words}")


def _network(text: str) -> tuple[int, int, int]:
    """Return the version, first bits and length of the rest of ``ADDRESS/LENGTH``. Raises ProtocolError."""
    address, _, length = text.partition("/")
    try:
        version, bits = _bits(address)
        rest = (32 if version == 4 else 128) - int(length)
        return version, bits >> rest, rest
    except (OSError, ValueError):
        raise ProtocolError(f"no network of addresses: {text!r:.80}") from None


def _contains(network: tuple[int, int, int], address: str) -> bool:
    version, bits = _bits(address)
    return version == network[0] and bits >> network[2] == network[1]


def _bits(address: str) -> tuple[int, int]:
    if ":" in address:
        return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big")
    return 4, int.from_bytes(socket.inet_aton(address), "big")

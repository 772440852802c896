"""Names of things on the host: those derived from the name of a bridge, and which ones are allowed. Pure."""

from __future__ import annotations

try:  # what hashlib has it from. hashlib loads OpenSSL, which is large, and relays and workers see no file
    from _blake2 import blake2s
except ImportError:
    from hashlib import blake2s

from tproxy.errors import BadName
from tproxy.typed import NamedTuple

TABLE = "one_tproxy"  # in nftables families ip (maps) and bridge (guards)
DAEMON_TITLE = "one_tproxy"

# IFNAMSIZ is 16 with the final NUL, <linux/if.h>.
INTERFACE_NAME_BYTES = 15

# The characters that an nftables identifier and a file name can both hold without quoting (nft(8), LEXICAL
# CONVENTIONS). Linux allows more in the name of an interface. A bridge called "a;b" gets an error message,
# which is better than support in some places.
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")

_HEXADECIMAL = frozenset("0123456789abcdef")


def check_interface_name(name: str, what: str = "bridge") -> str:
    """Return ``name`` if it can be an interface's; ``what`` names it in the message. Raises BadName."""
    if not name:
        raise BadName(f"{what} name is empty")
    if len(name.encode(errors="surrogateescape")) > INTERFACE_NAME_BYTES:
        raise BadName(f"{what} name {name!a} is longer than {INTERFACE_NAME_BYTES} bytes")
    if name in (".", "..") or not _NAME.issuperset(name):
        raise BadName(f"{what} name {name!a} may hold only letters, digits, '_', '.' and '-'")
    return name


def check_mac(text: str) -> str:
    """Return a MAC address as nft writes it, in lower case. Raises BadName."""
    parts = text.lower().split(":")
    if len(parts) != 6 or not all(len(each) == 2 and _HEXADECIMAL.issuperset(each) for each in parts):
        raise BadName(f"{text!a} is not a MAC address such as 02:00:0a:00:00:05")
    return ":".join(parts)


class _Bridge(NamedTuple):
    bridge: str


class BridgeNames(_Bridge):
    """All names on the host of one bridge (docs/contract.md, Names on the host). Raises BadName."""

    __slots__ = ()

    def __new__(cls, bridge: str) -> BridgeNames:
        return super().__new__(cls, check_interface_name(bridge))

    @property
    def namespace(self) -> str:
        return f"one_tproxy_{self.bridge}"

    @property
    def _veth_stem(self) -> str:
        if len(self.bridge) < INTERFACE_NAME_BYTES:
            return self.bridge
        # There is no room for one more letter: "tp", 12 hexadecimal digits of a hash, then "a" or "b". With
        # 48 bits, two bridges of one host have the same digits practically never.
        return "tp" + blake2s(self.bridge.encode(), digest_size=6).hexdigest()

    @property
    def veth_bridge(self) -> str:
        return self._veth_stem + "b"

    @property
    def veth_namespace(self) -> str:
        return self._veth_stem + "a"

    @property
    def map(self) -> str:
        return f"ep_{self.bridge}"

    @property
    def members(self) -> str:
        return f"gu_{self.bridge}"

    @property
    def cards(self) -> str:
        return f"pt_{self.bridge}"

    @property
    def options(self) -> str:
        return f"op_{self.bridge}"

    @property
    def typed_map(self) -> str:
        return f"sv_{self.bridge}"

    @property
    def typed_options(self) -> str:
        return f"so_{self.bridge}"

    @property
    def routes(self) -> str:
        return f"rt_{self.bridge}"

    @property
    def arp_guard(self) -> str:
        return f"ch_{self.bridge}"

    @property
    def relay_title(self) -> str:
        return f"one_tproxy_{self.bridge}"

    @property
    def relay_log(self) -> str:
        return f"one_tproxy_{self.bridge}.log"


_LONG_NAME = "blake2s:"


def is_stand_in(name: str) -> bool:
    """Return whether this is the stand-in of a longer name."""
    return name.startswith(_LONG_NAME)


def stand_in(name: str) -> str:
    """Return the short text that stands for a network's name where there is no room for the name."""
    return _LONG_NAME + blake2s(name.encode(errors="surrogateescape"), digest_size=12).hexdigest()

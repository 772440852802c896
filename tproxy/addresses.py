"""The addresses of tproxy itself, and the rules for addresses of services and endpoints. Pure."""

from __future__ import annotations

import socket

SERVICE_ADDRESS = "169.254.16.9"
# Its last four bytes are those of SERVICE_ADDRESS. No host gives it to itself: an address that is made of a
# MAC has ff:fe in its middle, and others are random.
SERVICE_ADDRESS_IPV6 = "fe80::a9fe:1009"

# A locally administered address (bit 1 of the first byte) with the service address in the last four bytes. It
# is the same on every bridge and host, so that the ARP cache of a migrated guest stays right. It does not
# begin with 02:00, the prefix of OpenNebula's MACs, which end in the guest's IPv4 address: the guest
# 169.254.16.9 would have this one.
SERVICE_MAC = "06:00:a9:fe:10:09"

# The address of the veth's other end, the port of the bridge. It tells our ports from others, which a name
# that ends in "b" does not: the files in etc/ tell programs that manage links to leave this address alone. It
# is high, because a bridge without an address of its own takes the lowest of its ports, and a hook must not
# change the address by which guests know their gateway.
PORT_MAC = "fe:ff:a9:fe:10:09"

# Begins an endpoint that is a UNIX socket; behind it comes the path, of at most so many bytes (unix(7)).
UNIX = "unix:"
MOST_PATH = 107
# A list of endpoints has commas between them, and a line of `status` spaces.
_IN_PATHS = frozenset(map(chr, range(0x21, 0x7F))) - {","}

_MULTICAST = range(224, 240)  # 224.0.0.0/4
# By their first number: "this network", loopback, multicast, and what is reserved (RFC 6890).
_OF_NO_HOST = frozenset({0, 127, *range(224, 256)})


def is_ipv4(text: str) -> bool:
    """Return whether the text is an IPv4 address of four decimal numbers."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def as_ipv6(text: str) -> str:
    """Return an IPv6 address as RFC 5952 writes it; "" for anything else, and for one with a zone."""
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError):
        return ""


def is_address(text: str) -> bool:
    """Return whether the text is an IPv4 address, or an IPv6 address as ``as_ipv6`` writes it."""
    return is_ipv4(text) or (":" in text and as_ipv6(text) == text)


def is_unix(text: str) -> bool:
    """Return whether the text is ``unix:`` and a path that can be an endpoint."""
    return text.startswith(UNIX) and not unix_fault(text)


def unix_fault(text: str) -> str:
    """Return why a text that begins with ``unix:`` cannot be an endpoint; "" when it can."""
    path = text.removeprefix(UNIX)
    if not path.startswith("/") or path.endswith("/"):
        return "is not the absolute path of a UNIX socket, such as unix:/run/x.sock"
    if len(path) > MOST_PATH:
        return f"is a path of more than {MOST_PATH} bytes, which no UNIX socket can have"
    if not _IN_PATHS.issuperset(path):
        return "is a path with other characters than printable ASCII, or with a space or a comma"
    return ""


def is_endpoint(text: str) -> bool:
    """Return whether an endpoint can have this address: an IP address, or a UNIX socket."""
    return is_address(text) or is_unix(text)


def can_be_served(address: str) -> bool:
    """Return whether the text is an IPv4 address at which guests can have services."""
    return is_ipv4(address) and int(address.partition(".")[0]) not in _OF_NO_HOST


_MAPPED = bytes(10) + b"\xff\xff"  # begins an IPv4 address as IPv6 maps it (RFC 4291, 2.5.5.2)


def packed_address(address: str) -> bytes:
    """Return an IPv6 or IPv4 address in 16 bytes."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return _MAPPED + socket.inet_aton(address)


def unpacked_address(packed: bytes) -> str:
    """Return the address that ``packed_address`` packed."""
    if packed.startswith(_MAPPED):
        return socket.inet_ntoa(packed[len(_MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, packed)


def refused(address: str) -> str:
    """Return why an address cannot be an endpoint; "" when it can, or when it is a host name."""
    if address == SERVICE_ADDRESS:
        return "is the service address itself: a loop"
    if ":" in address:
        return _refused_ipv6(socket.inet_pton(socket.AF_INET6, address))
    if not is_ipv4(address):
        return ""
    if address in ("0.0.0.0", "255.255.255.255") or int(address.partition(".")[0]) in _MULTICAST:
        return "is not the address of one host"
    return ""


def _refused_ipv6(address: bytes) -> str:
    if address.startswith(b"\xff") or not any(address):
        return "is not the address of one host"
    if address[0] == 0xFE and address[1] & 0xC0 == 0x80:
        return "is a link-local address, which means nothing without an interface"
    if address.startswith(bytes(10) + b"\xff\xff"):
        return "stands for an IPv4 address: write that one"
    return ""


def with_prefix(address: str) -> str:
    """Return a service address with the length of its prefix, as a bridge's namespace has it."""
    return f"{address}/64" if ":" in address else f"{address}/32"


def packed_peer(peer: tuple[str, int]) -> bytes:
    """Return address and port of a connection's peer in 6 bytes, or 18: a third of a tuple's memory."""
    address, port = peer
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(kind, address) + port.to_bytes(2, "big")


def unpacked_peer(packed: bytes) -> tuple[str, int]:
    """Return the address and port that ``packed_peer`` packed."""
    kind = socket.AF_INET6 if len(packed) > 6 else socket.AF_INET
    return socket.inet_ntop(kind, packed[:-2]), int.from_bytes(packed[-2:], "big")

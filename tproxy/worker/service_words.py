"""Services as bytes, for the messages from daemon to worker. Nothing here does I/O.

An address of an endpoint is a byte that says how long the path of a UNIX socket behind it is; where it is 0,
an IP address of 16 bytes is behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from tproxy.addresses import UNIX, is_unix, packed_address, unpacked_address
from tproxy.errors import ProtocolError
from tproxy.model import PROTOCOLS, PROXY_V2, SPREADS, TCP, Endpoint, Service, ServiceKey, leading

# Bytes of services in one message: far below the default of net.core.wmem_default.
MOST_BYTES = 100_000

# Seconds. No timeout is as long as this, which also leaves out what is no number (NaN).
LONGEST = 1 << 32

_SERVICE = struct.Struct("!HB16sIHd7I??IB")  # behind it the addresses
_ADDRESS = 16
_KEY = struct.Struct("!HB16sI")
KEY_BYTES = _KEY.size


def parts(services: Sequence[Service]) -> list[tuple[Service, ...]]:
    """Return the services in parts that fit into one message each; there is at least one part."""
    found: list[list[Service]] = [[]]
    room = MOST_BYTES
    for each in services:
        size = _SERVICE.size + sum(1 + max(len(address), _ADDRESS) for address in _addresses(each))
        if size > room:
            found.append([])
            room = MOST_BYTES
        found[-1].append(each)
        room -= size
    return [tuple(each) for each in found]


def pack(service: Service) -> bytes:
    """Return a service as bytes, without its name, which a worker does not need."""
    key, endpoint, _, *numbers, _, spread, idle, _ = service
    addresses = _addresses(service)
    known = key.port, PROTOCOLS.index(key.protocol), packed_address(key.address), key.network
    ends = service.introduced, spread == "least", idle, len(addresses)
    return _SERVICE.pack(*known, endpoint.port, *numbers, *ends) + b"".join(map(_pack_address, addresses))


def unpack(body: bytes) -> Iterator[Service]:
    """Yield the services. Raises ProtocolError, and struct.error or UnicodeDecodeError."""
    at = 0
    while at < len(body):
        fields = _SERVICE.unpack_from(body, at)
        port, protocol, address, network, remote_port, *numbers, introduced, least, idle, count = fields
        if protocol >= len(PROTOCOLS):
            raise ProtocolError("a service has an unknown protocol")
        at += _SERVICE.size
        if not count:
            raise ProtocolError("a service has no endpoint")
        addresses = []
        for _ in range(count):
            found, at = _unpack_address(body, at)
            addresses.append(found)
        if PROTOCOLS[protocol] != TCP and any(map(is_unix, addresses)):
            raise ProtocolError(f"a service of {PROTOCOLS[protocol]} leads to a UNIX socket")
        if not 0 < numbers[0] < LONGEST:
            raise ProtocolError(f"a service with a connect timeout of {numbers[0]} s")
        options = *numbers, PROXY_V2 if introduced else "", SPREADS[least], idle
        key = ServiceKey(port, PROTOCOLS[protocol], unpacked_address(address), network)
        yield Service(key, Endpoint(leading(addresses), remote_port), "", *options).led_to(addresses)


def pack_key(key: ServiceKey) -> bytes:
    return _KEY.pack(key.port, PROTOCOLS.index(key.protocol), packed_address(key.address), key.network)


def unpack_key(data: bytes) -> ServiceKey:
    """Return the key in these bytes. Raises ProtocolError or struct.error."""
    port, protocol, address, network = _KEY.unpack(data)
    if protocol >= len(PROTOCOLS):
        raise ProtocolError("a key has an unknown protocol")
    return ServiceKey(port, PROTOCOLS[protocol], unpacked_address(address), network)


def _addresses(service: Service) -> tuple[str, ...]:
    return service.endpoints or (service.endpoint.address,)


def _pack_address(address: str) -> bytes:
    if not is_unix(address):
        return b"\0" + packed_address(address)
    path = address.removeprefix(UNIX).encode()
    return bytes([len(path)]) + path


def _unpack_address(body: bytes, at: int) -> tuple[str, int]:
    """Return the address that begins at ``at``, and where it ends."""
    length = body[at] if at < len(body) else 0
    at += 1
    end = at + (length or _ADDRESS)
    if end > len(body):
        raise ProtocolError("the endpoints of a service are cut off")
    if not length:
        return unpacked_address(body[at:end]), end
    address = UNIX + body[at:end].decode()
    if not is_unix(address):
        raise ProtocolError("an endpoint is no UNIX socket")
    return address, end

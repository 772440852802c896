"""Takes connections of hypervisors elsewhere, checks whom they claim to speak for, and passes them on.

Two headers come in front of a connection. HAProxy's says which certificate the hypervisor has shown. The one
behind it is that of the hypervisor's worker, and names the guest: the gate refuses networks that the
certificate does not list, and writes the hypervisor's own name over whatever the header says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tproxy import proxy_protocol
from tproxy.egress import streams
from tproxy.egress.hosts.certificates import Host
from tproxy.errors import ProtocolError
from tproxy.log.lazy import logger

log = logger(__name__)

PATIENCE = 10.0  # seconds for both headers, and for the connection to the part

# What tells squid's helper and the ledger who called. The connection's id is of use on the hypervisor only.
_KEPT = (
    proxy_protocol.OF_NETWORK,
    proxy_protocol.OF_NETWORK_ID,
    proxy_protocol.OF_BRIDGE,
    proxy_protocol.OF_MAC,
    proxy_protocol.OF_PORT,
)


def checked(host: Host, header: proxy_protocol.Header) -> bytes:
    """Return the header by which the parts of this node know the guest. Raises ProtocolError."""
    if header.source is None or header.destination is None:
        raise ProtocolError(f"host {host.name} names no caller")
    values = {kind: header.values[kind] for kind in _KEPT if header.values.get(kind)}
    network = values.get(proxy_protocol.OF_NETWORK, "")
    number = values.get(proxy_protocol.OF_NETWORK_ID, "")
    if network and not host.may_claim(network):
        raise ProtocolError(f"host {host.name} may not claim network {network!a}")
    if number and not host.may_claim(number):
        if not network:
            raise ProtocolError(f"host {host.name} may not claim network id {number!a}")
        del values[proxy_protocol.OF_NETWORK_ID]  # rules may name ids: this one would be a claim as well
    values[proxy_protocol.OF_HYPERVISOR] = host.name
    return proxy_protocol.encode(header.source, header.destination, values)


class Gate:
    """Serves connections. ``find`` returns the host of a certificate.

    ``parts`` maps the port that the guest called to the part's address, and whether it takes a header. Other
    ports are for ``proxy``.
    """

    def __init__(
        self,
        find: Callable[[str], Host | None],
        proxy: tuple[str, int],
        parts: Mapping[int, tuple[tuple[str, int], bool]],
    ) -> None:
        self._find, self._proxy, self._parts = find, proxy, parts

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            start, address = await asyncio.wait_for(self._beginning(reader), PATIENCE)
            part_reader, part_writer = await asyncio.wait_for(asyncio.open_connection(*address), PATIENCE)
        except (ProtocolError, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.warning("a host's connection is refused: %s", str(error) or "the peer is too slow")
            await streams.close(writer)
            return
        part_writer.write(start)
        try:
            await asyncio.gather(streams.copy(reader, part_writer), streams.copy(part_reader, writer))
        finally:
            await streams.close(part_writer)
            await streams.close(writer)

    async def _beginning(self, reader: asyncio.StreamReader) -> tuple[bytes, tuple[str, int]]:
        _, outer = await streams.read_header(reader)
        host = self._find(outer.values.get(proxy_protocol.UNIQUE_ID, ""))
        if host is None:
            raise ProtocolError("its certificate was removed")
        _, inner = await streams.read_header(reader)
        start = checked(host, inner)
        assert inner.destination is not None
        address, with_header = self._parts.get(inner.destination[1], (self._proxy, True))
        return start if with_header else b"", address

"""Answers names of the policy with the service address, so that guests that know no proxy get to the front.

A UDP and TCP service, which the daemon offers at the service address like any other. It asks nobody: a name
that the policy does not have does not exist (NXDOMAIN). A PROXY header in front of a query is read over,
since all guests get the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tproxy import proxy_protocol
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.egress.policy import judging, places
from tproxy.egress.policy.rules import Policy
from tproxy.errors import ProtocolError

# Seconds that clients may keep an answer: a change of the policy applies to names within this time.
TTL = 5

_MOST_UDP = 1232  # bytes; what passes everywhere (dnsflagday.net/2020)
_IDLE = 30.0  # seconds, for TCP


def answer(data: bytes, hosts: Collection[str], address: str = SERVICE_ADDRESS) -> bytes | None:
    """Return the answer to one query in wire format; None to what is no query, which gets none."""
    try:
        query = dns.message.from_wire(data)
    except dns.exception.DNSException:
        return None
    if query.flags & dns.flags.QR:
        return None  # an answer, perhaps of another resolver with a forged address: a loop
    response = dns.message.make_response(query, recursion_available=True)
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        response.set_rcode(dns.rcode.NOTIMP)
        return response.to_wire()
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    if question.rdclass != dns.rdataclass.IN or not any(places.host_matches(each, name) for each in hosts):
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(question.name, TTL, "IN", "A", address))
    response.flags |= dns.flags.AA
    return response.to_wire(max_size=65535)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        try:
            found = self._reply(_behind_header(data))
        except ProtocolError:
            return
        if found is not None and len(found) <= _MOST_UDP:
            self._transport.sendto(found, sender)


def _behind_header(data: bytes) -> bytes:
    """Return a datagram without its PROXY header, if it has one. Raises ProtocolError."""
    if not data.startswith(proxy_protocol.SIGNATURE):
        return data
    if len(data) < proxy_protocol.START:
        raise ProtocolError("a PROXY header is cut off")
    return data[proxy_protocol.START + proxy_protocol.length(data[: proxy_protocol.START]) :]


async def _stream(
    reply: Callable[[bytes], bytes | None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one TCP connection (RFC 7766)."""
    with suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ProtocolError):
        first = await asyncio.wait_for(reader.readexactly(2), _IDLE)
        if first == proxy_protocol.SIGNATURE[:2]:
            start = first + await asyncio.wait_for(reader.readexactly(proxy_protocol.START - 2), _IDLE)
            await asyncio.wait_for(reader.readexactly(proxy_protocol.length(start)), _IDLE)
            first = await asyncio.wait_for(reader.readexactly(2), _IDLE)
        while True:
            query = await asyncio.wait_for(reader.readexactly(int.from_bytes(first, "big")), _IDLE)
            found = reply(query)
            if found is None:
                break
            writer.write(len(found).to_bytes(2, "big") + found)
            await writer.drain()
            first = await asyncio.wait_for(reader.readexactly(2), _IDLE)
    writer.close()


async def start(
    address: str, port: int, policy: Callable[[], Policy]
) -> tuple[asyncio.DatagramTransport, asyncio.Server]:
    """Listen on UDP and TCP, and answer from now on, by the policy as it is at each query."""
    known: list[tuple[Policy, Collection[str]]] = []

    def reply(data: bytes) -> bytes | None:
        now = policy()
        if not known or known[0][0] is not now:
            known[:] = [(now, judging.hosts(now))]
        return answer(data, known[0][1])

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(partial(_Datagrams, reply), (address, port))
    server = await asyncio.start_server(partial(_stream, reply), address, port)
    return transport, server

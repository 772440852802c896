"""What an operator is told of one connection, or UDP session: a line of JSON (docs/contract.md, Commands).

It is made when somebody asks, of what the connection has anyway and of what the kernel knows of its sockets.
"""

from __future__ import annotations

from tproxy.datapath.connection import Connection
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.neighbours import Neighbours
from tproxy.datapath.route_target import RouteTarget
from tproxy.datapath.session import Session
from tproxy.datapath.streams import Stream
from tproxy.datapath.target import Target
from tproxy.kernel import tcp
from tproxy.log.lines import json_object
from tproxy.model import Endpoint

# The states of a connection. "closing": both sides have finished, and the last bytes are on their way.
DIALLING, OPEN, CLOSING = "dialling", "open", "closing"
GUEST_FINISHED, ENDPOINT_FINISHED = "half-closed by guest", "half-closed by endpoint"
STATES = (DIALLING, OPEN, GUEST_FINISHED, ENDPOINT_FINISHED, CLOSING)


def state(connection: Connection) -> str:
    """Return what the connection is doing, one of STATES."""
    if connection.dialing:
        return DIALLING
    by_guest, by_endpoint = connection.to_endpoint.ended, connection.to_guest.ended
    if by_guest and by_endpoint:
        return CLOSING
    return GUEST_FINISHED if by_guest else ENDPOINT_FINISHED if by_endpoint else OPEN


def mac_of(connection: Connection, neighbours: Neighbours) -> str:
    """Return the guest's MAC, "" where nobody knows it: that of its SYN if it was kept, or of its address."""
    bridge, sock = connection.target.bridge, connection.to_endpoint.source
    return connection.mac or neighbours.mac(bridge, sock, connection.peer[0])


def mac_of_session(session: Session, neighbours: Neighbours) -> str:
    """The same for a UDP session."""
    return session.mac or neighbours.mac(session.target.bridge, session.gate.sock, session.guest[0])


def line(connection: Connection, known: Introductions, mac: str, now: float, *, draining: bool) -> str:
    """Return the line of a connection; ``now`` is by time.monotonic()."""
    guest = tcp.round_trip(connection.to_endpoint.source)
    endpoint = tcp.round_trip(connection.to_guest.source)
    return _line(
        connection.id,
        "tcp",
        state(connection),
        draining,
        now - connection.started,
        connection.target,
        connection.peer,
        mac,
        known.place(connection.target.bridge, mac),
        connection.dialed,
        (connection.to_endpoint.moved, connection.to_guest.moved),
        (guest.microseconds, endpoint.microseconds),
        (guest.repeated, endpoint.repeated),
    )


def stream_line(stream: Stream, known: Introductions, mac: str, now: float, *, draining: bool) -> str:
    """The same for a stream from outside: its client stands in the place of the endpoint."""
    guest = tcp.round_trip(stream.to_guest.source)
    client, port = stream.peer
    word = {GUEST_FINISHED: ENDPOINT_FINISHED, ENDPOINT_FINISHED: GUEST_FINISHED}
    return _line(
        stream.id,
        "tcp",
        word.get(state(stream), state(stream)),
        draining,
        now - stream.started,
        stream.target,
        (stream.dialed.address, stream.dialed.port),
        mac,
        known.place(stream.target.bridge, mac),
        Endpoint(client, port),
        (stream.to_guest.moved, stream.to_endpoint.moved),
        (guest.microseconds, None),
        (guest.repeated, None),
    )


def session_line(session: Session, known: Introductions, mac: str, now: float, *, draining: bool) -> str:
    """The same for a UDP session, whose sockets know no round-trip times."""
    return _line(
        known.id(session.number),
        "udp",
        OPEN,
        draining,
        now - session.started,
        session.target,
        (session.guest[0], session.guest[1]),
        mac,
        known.place(session.target.bridge, mac),
        session.endpoint,
        (session.sent, session.received),
        (None, None),
        (None, None),
    )


def _line(
    id_: str,
    protocol: str,
    word: str,
    draining: bool,
    age: float,
    target: Target,
    peer: tuple[str, int],
    mac: str,
    port: str,
    endpoint: Endpoint,
    moved: tuple[int, int],
    round_trips: tuple[int | None, int | None],
    repeated: tuple[int | None, int | None],
) -> str:
    return json_object(
        {
            "id": id_,
            "protocol": protocol,
            "state": word,
            "draining": draining,
            "age": round(age, 3),
            "bridge": target.bridge,
            "network": target.network,
            "service": target.label,
            "route": target.id if isinstance(target, RouteTarget) else "",
            "service_address": "" if isinstance(target, RouteTarget) else target.service.key.address,
            "service_port": 0 if isinstance(target, RouteTarget) else target.service.key.port,
            "guest": peer[0],
            "guest_port": peer[1],
            "mac": mac,
            "port": port,
            "endpoint": str(endpoint),
            "bytes_to_endpoint": moved[0],
            "bytes_to_guest": moved[1],
            "guest_rtt": round_trips[0],
            "endpoint_rtt": round_trips[1],
            "guest_retransmits": repeated[0],
            "endpoint_retransmits": repeated[1],
        }
    )

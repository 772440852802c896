"""What relays tell the daemon: a relay that was taken over may tell anything, as often as it likes."""

from __future__ import annotations

import errno
import os
import socket
from typing import cast

import pytest

from tproxy.daemon.catalog import Catalog
from tproxy.daemon.link import Link
from tproxy.daemon.relays import Relays
from tproxy.datapath.connection import Connections
from tproxy.kernel.loop import Loop
from tproxy.log import limit
from tproxy.model import Endpoint, Service, ServiceMap
from tproxy.relay.channel import Delivery
from tproxy.relay.spawner import Spawner


class Hostile:
    """A relay that was taken over, as the daemon sees it."""

    bridge = "br0"

    def __init__(self) -> None:
        self.warnings = limit.warnings()
        self.problems: dict[int, int] = {}


class Sockets:
    """A message with any number of sockets."""

    def take_connection(self) -> socket.SocketType:
        return socket.SocketType(socket.AF_INET, socket.SOCK_STREAM)


@pytest.fixture
def relays() -> Relays:
    loop = Loop()
    catalog = Catalog()
    catalog.apply(ServiceMap("br0", {80: Service(80, Endpoint("192.0.2.1", 80))}))
    spawner = cast("Spawner", None)
    return Relays(loop, spawner, catalog, Connections(loop), lambda: None, most_connections=1000)


def test_connections_to_ports_without_a_service_cannot_fill_the_log(
    relays: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    link, delivery = cast("Link", Hostile()), cast("Delivery", Sockets())
    for _ in range(50):
        relays.connected(link, 81, (bytes(6),) * 10, delivery)
    assert len(caplog.messages) == 10


def test_reports_that_change_all_the_time_cannot_fill_the_log_and_status_has_the_last_one(
    relays: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = Hostile()
    for number in [errno.EADDRINUSE, errno.EACCES] * 50:
        before, hostile.problems = hostile.problems, {80: number}
        relays.reported(cast("Link", hostile), before)
    assert len(caplog.messages) == 10
    target = relays._catalog.find("br0", 80)
    assert target is not None
    assert target.last_error == f"cannot listen: {os.strerror(errno.EACCES)}"

"""What relays tell the daemon: a relay that was taken over may tell anything, as often as it likes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast

import pytest

from tproxy.daemon.catalog import Catalog
from tproxy.daemon.link import Link
from tproxy.daemon.relays import Relays
from tproxy.daemon.spawner import Spawner
from tproxy.daemon.workers import Workers
from tproxy.kernel.loop import Loop
from tproxy.log import limit
from tproxy.model import Endpoint, Service, ServiceKey, ServiceMap


class Hostile:
    """A relay that was taken over, as the daemon sees it."""

    bridge = "br0"
    pid = 1
    started = True

    def __init__(self) -> None:
        self.warnings = limit.warnings()
        self.problems: dict[ServiceKey, int] = {}


@pytest.fixture
def relays(tmp_path: Path) -> Relays:
    loop = Loop()
    catalog = Catalog()
    catalog.apply(ServiceMap("br0", {ServiceKey(80): Service(ServiceKey(80), Endpoint("192.0.2.1", 80))}))
    spawner = cast("Spawner", None)
    workers = Workers(loop, spawner, str(tmp_path), lambda: None, lambda: None)
    return Relays(loop, spawner, catalog, workers, lambda: None)


def test_reports_that_change_all_the_time_cannot_fill_the_log_and_status_has_the_last_one(
    relays: Relays, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = Hostile()
    relays._links["br0"] = cast("Link", hostile)
    for number in [errno.EADDRINUSE, errno.EACCES] * 50:
        before, hostile.problems = hostile.problems, {ServiceKey(80): number}
        relays.reported(cast("Link", hostile), before)
    assert len(caplog.messages) == 10
    assert relays.problem("br0", ServiceKey(80)) == os.strerror(errno.EACCES)


def test_a_place_that_no_worker_has_is_nothing_that_a_relay_can_break(relays: Relays) -> None:
    hostile = cast("Link", Hostile())
    for place in (0, 1, 65535):
        relays.behind(hostile, place)

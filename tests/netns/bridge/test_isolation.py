"""Isolation, frame by frame: each row of that table in docs/security.md, see ``isolation`` and ``forged``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract import SECURITY, table
from tests.netns.bridge.forged import CLAIMS, FRAMES, Host
from tests.netns.bridge.frames import BROADCAST, EXPERIMENT, content, ethernet
from tests.netns.bridge.isolation import Lab, wanted, wanted_behind_uplink
from tests.netns.bridge.test_guards import mac_of
from tests.netns.program import program
from tproxy.lab.hypervisor import Guest, Hypervisor

ROWS = table("Isolation, frame by frame", "frames", page=SECURITY).by_first_column()


@pytest.fixture(scope="module")
def lab(real_kernel: None) -> Iterator[Lab]:
    with Hypervisor() as host:
        yield Lab(host)


@pytest.mark.parametrize("row", FRAMES)
def test_the_frames_of_a_guest_arrive_where_the_table_says_and_nowhere_else(lab: Lab, row: str) -> None:
    cast = lab.cast(row, lab.liar)
    frames = FRAMES[row](cast)
    heard = lab.send(lab.liar, cast, frames)
    assert lab.arrivals(cast, frames, heard) == wanted(ROWS[row])
    lab.check()


@pytest.mark.parametrize("row", FRAMES)
def test_the_same_frames_from_behind_an_uplink_reach_no_service(lab: Lab, row: str) -> None:
    cast = lab.cast(row, lab.outside)
    frames = FRAMES[row](cast)
    heard = lab.send(lab.outside, cast, frames)
    assert lab.arrivals(cast, frames, heard) == wanted_behind_uplink(ROWS[row])
    lab.check()


def test_a_port_that_was_attached_a_moment_ago_can_claim_nothing(lab: Lab) -> None:
    """Where guards match ports, the daemon tells them the new port some milliseconds later.

    Until then it may claim to the host, which has no use for the service.
    """
    host = lab.host
    host.ip("netns add late", "link add late0 type veth peer name eth0 netns late", "link set late0 up")
    host.ip("link set eth0 up", netns="late")
    mac = mac_of(Guest(host, "late", "br0", "late0", "10.0.0.9"))
    cast = lab.cast(CLAIMS[0], lab.liar)
    cast = cast._replace(me=Host(mac, "10.0.0.9"), mark=b"newclaim")
    claims = [frame for row in CLAIMS for frame in FRAMES[row](cast)]
    honest = [ethernet(BROADCAST, mac, EXPERIMENT, word + bytes(40)) for word in (b"honest 1", b"honest 2")]
    for each in honest:
        flood = [frame.hex() for frame in (*claims, each)]
        flooding = host.serve(*program("frame_flood", "eth0", *flood), netns="late")
        if each is honest[0]:
            host.ip("link set late0 master br0")
        heard = lab.listen([("neighbour", content(each))], lab.patterns(cast))
        flooding.kill()
        assert lab.arrivals(cast, claims, heard).keys() <= {"host"}
    host.ip("link del late0")
    lab.check()


def test_without_guards_the_same_sniffers_see_the_claims(hypervisor: Hypervisor) -> None:
    lab = Lab(hypervisor)
    hypervisor.run("nft", "delete", "table", "bridge", "one_tproxy")
    row = "claim-ip"
    cast = lab.cast(row, lab.liar)
    frames = FRAMES[row](cast)
    last = ethernet(BROADCAST, cast.me.mac, EXPERIMENT, b"the last frame of the sender" + bytes(20))
    lab.forge(lab.liar, [*frames, last])
    heard = lab.listen([("neighbour", content(last))], lab.patterns(cast))
    assert lab.arrivals(cast, frames, heard)["neighbours"] == {"frame"}

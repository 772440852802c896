"""The network of a caller, by what hooks named and where its MAC address is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.datapath.membership import EVERYBODY, REFUSED, SEVERAL, WAIT, Guests

BLUE, RED = 1, 2
ONE, TWO, THREE, OTHER = (f"02:00:00:00:00:0{number}" for number in range(1, 5))
STAND_IN = "0a:fe:00:00:00:01"

# ONE is blue and behind vnet1, TWO is red and behind vnet2, THREE is blue: its port was not named. Of a
# blue guest behind vnet5, only the port was named.
MEMBERS = {ONE: BLUE, TWO: RED, THREE: BLUE}
CARDS = [("vnet1", ONE, BLUE), ("vnet2", TWO, RED), ("vnet5", STAND_IN, BLUE)]


@pytest.mark.parametrize(
    ("mac", "place", "network"),
    [
        pytest.param(ONE, "vnet1", BLUE, id="where its hook said"),
        pytest.param(TWO, "vnet2", RED, id="another guest, where its hook said"),
        pytest.param(ONE, "vnet2", REFUSED, id="behind the port of another network"),
        pytest.param(ONE, "vnet5", REFUSED, id="behind another port of its network"),
        pytest.param(ONE, "vnet9", REFUSED, id="behind a port that no hook named"),
        pytest.param(ONE, SEVERAL, REFUSED, id="behind two ports"),
        pytest.param(ONE, None, WAIT, id="its place is not known yet"),
        pytest.param(THREE, "vnet9", BLUE, id="its MAC was named, and no port"),
        pytest.param(THREE, "vnet1", BLUE, id="its MAC was named, at a port of its network"),
        pytest.param(THREE, "vnet2", REFUSED, id="its MAC was named, at a port of another network"),
        pytest.param(THREE, SEVERAL, REFUSED, id="its MAC was named, and is used by two"),
        pytest.param(THREE, None, WAIT, id="its MAC was named, and its place is not known yet"),
        pytest.param(OTHER, "vnet1", BLUE, id="a guest of a guest"),
        pytest.param(OTHER, "vnet5", BLUE, id="only its port was named"),
        pytest.param(OTHER, "vnet9", EVERYBODY, id="nothing was named"),
        pytest.param(OTHER, SEVERAL, EVERYBODY, id="nothing was named, and two use it"),
        pytest.param(OTHER, None, WAIT, id="nothing is known yet"),
        pytest.param(STAND_IN, "vnet9", EVERYBODY, id="it uses the address that stands for others"),
        pytest.param("", "vnet1", REFUSED, id="its MAC could not be looked up"),
    ],
)
def test_the_port_decides_and_then_the_mac(mac: str, place: str | None, network: int) -> None:
    guests = Guests(MEMBERS, CARDS)
    if place is not None:
        guests.places[mac] = place
    verdict = guests.judge(mac)
    assert verdict.network == network
    assert bool(verdict.why) == (network == REFUSED)


@pytest.mark.parametrize("place", ["vnet1", SEVERAL, None])
@pytest.mark.parametrize(("mac", "network"), [(ONE, BLUE), (TWO, RED), (OTHER, EVERYBODY), ("", REFUSED)])
def test_without_named_ports_macs_alone_decide(mac: str, network: int, place: str | None) -> None:
    guests = Guests(MEMBERS)
    if place is not None:
        guests.places[mac] = place
    assert guests.judge(mac).network == network


def test_a_port_of_two_networks_decides_only_for_macs_that_were_named() -> None:
    guests = Guests({ONE: BLUE, TWO: RED}, [("vnet1", ONE, BLUE), ("vnet1", TWO, RED)])
    guests.places |= dict.fromkeys([ONE, TWO, OTHER], "vnet1")
    assert [guests.judge(mac).network for mac in (ONE, TWO, OTHER)] == [BLUE, RED, REFUSED]


def test_what_hooks_name_now_replaces_what_they_named_before() -> None:
    guests = Guests(MEMBERS, CARDS)
    guests.places[ONE] = "vnet3"
    assert guests.judge(ONE).network == REFUSED
    guests.name({ONE: RED}, [("vnet3", ONE, RED)])
    assert guests.judge(ONE).network == RED
    guests.name({}, [])
    assert guests.judge(ONE).network == EVERYBODY


macs = st.sampled_from([ONE, TWO, THREE, OTHER])
ports = st.sampled_from(["vnet1", "vnet2", "vnet3"])
orders = st.integers(1, 3)


@given(
    st.dictionaries(macs, orders),
    st.lists(st.tuples(ports, macs, orders)),
    st.dictionaries(macs, ports | st.just(SEVERAL)),
    macs,
)
def test_nobody_gets_a_network_that_a_hook_did_not_name_for_its_mac_or_port(
    members: dict[str, int], named: list[tuple[str, str, int]], places: dict[str, str], mac: str
) -> None:
    cards = [(port, each, members.get(each, order)) for port, each, order in named]
    guests = Guests(members, cards)
    guests.places |= places
    found = guests.judge(mac).network
    if found > EVERYBODY:
        place = places.get(mac)
        at = {network for port, _, network in cards if port == place}
        assert found in at or (found == members.get(mac) and not at)
        own = {port for port, each, _ in cards if each == mac and mac in members}
        assert not own or place in own

"""Behind which port a MAC is, as the kernel's messages tell it. Guests are in test_identity.py."""

from __future__ import annotations

import pytest

from tests.unit.sockets import run_until
from tproxy.daemon import guest_ports
from tproxy.daemon.guest_ports import GuestPorts, Places
from tproxy.datapath.membership import SEVERAL
from tproxy.kernel.loop import Loop
from tproxy.kernel.netlink import Entry, Name

BRIDGE, ONE, TWO, UPLINK = 7, 11, 12, 13  # indexes of links
MAC, OTHER = "02:00:0a:00:00:05", "02:00:0a:00:00:06"


class Setting:
    """A bridge with two guests' ports and an uplink, of which the kernel has said nothing yet."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.told: list[Places] = []
        self.ports = GuestPorts(self.loop, lambda _, places: self.told.append(places), lambda _: ["eth9"])
        self.ports._bridges["br0"] = guest_ports._Bridge(BRIDGE)
        self.ports._names = {ONE: "vnet0", TWO: "vnet1", UPLINK: "eth9"}

    def see(self, port: int, mac: str = MAC, vlan: int = 0, *, present: bool = True) -> None:
        self.ports._heard([Entry(BRIDGE, port, mac, vlan, present)])

    @property
    def known(self) -> Places:
        return self.ports.of("br0")


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_an_address_is_told_once_and_stays_when_the_kernel_forgets_it(setting: Setting) -> None:
    setting.see(ONE)
    setting.see(ONE)
    setting.see(ONE, present=False)
    assert setting.told == [{MAC: "vnet0"}]
    assert setting.known == {MAC: "vnet0"}


def test_an_address_is_forgotten_with_its_port(setting: Setting) -> None:
    setting.see(ONE)
    setting.ports._heard([Name(ONE, "vnet0", BRIDGE), Name(ONE, "", 0)])  # it goes down, and is gone
    assert setting.told == [{MAC: "vnet0"}, {MAC: ""}]
    assert setting.known == {}
    setting.see(TWO)
    assert setting.known == {MAC: "vnet1"}  # nobody else is there


def test_an_address_at_two_ports_is_at_several_for_a_while(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_ports, "CONTESTED", 0.05)
    setting.see(ONE)
    setting.see(TWO)
    assert setting.known == {MAC: SEVERAL}
    run_until(setting.loop, lambda: setting.known == {MAC: "vnet1"})


def test_an_address_is_contested_no_more_when_one_of_the_two_ports_is_gone(setting: Setting) -> None:
    setting.see(ONE)
    setting.see(TWO)
    setting.see(ONE)
    setting.ports._heard([Name(TWO, "", 0)])
    assert setting.known == {MAC: "vnet0"}


def test_an_address_whose_last_port_is_gone_is_at_the_other_one_when_it_is_seen_there(
    setting: Setting,
) -> None:
    setting.see(ONE)
    setting.see(TWO)
    setting.ports._heard([Name(TWO, "", 0)])
    assert setting.known == {}
    setting.see(ONE)
    assert setting.known == {MAC: "vnet0"}


def test_an_address_in_two_vlans_at_different_ports_is_at_several(setting: Setting) -> None:
    setting.see(ONE, vlan=10)
    setting.see(ONE, vlan=20)
    assert setting.known == {MAC: "vnet0"}
    setting.see(TWO, OTHER, vlan=10)
    setting.see(ONE, OTHER, vlan=20)
    assert setting.known == {MAC: "vnet0", OTHER: SEVERAL}


def test_an_address_behind_an_uplink_has_no_port_and_one_that_comes_from_there_has(setting: Setting) -> None:
    setting.see(UPLINK)
    assert setting.known == {}
    setting.see(ONE)  # the guest was migrated to this host
    assert setting.known == {MAC: "vnet0"}
    setting.see(UPLINK)
    assert setting.known == {}


def test_a_guest_cannot_have_more_than_some_addresses(setting: Setting) -> None:
    for number in range(guest_ports.MOST_AT_A_PORT + 10):
        setting.see(ONE, f"02:00:00:00:{number // 256:02x}:{number % 256:02x}")
    assert len(setting.known) == guest_ports.MOST_AT_A_PORT
    setting.see(TWO)
    assert setting.known[MAC] == "vnet1"


def test_entries_of_other_bridges_mean_nothing(setting: Setting) -> None:
    setting.ports._heard([Entry(BRIDGE + 1, ONE, MAC, 0, True)])
    assert setting.told == []

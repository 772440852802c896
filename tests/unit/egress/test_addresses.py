"""Addresses that upstream hosts may not have."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tproxy.egress.policy import addresses


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "192.168.1.1",
            "172.31.0.1",
            "169.254.16.9",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1"),
        *("::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "ff02::1", "localhost", ""),
    ],
)
def test_inner_addresses_are_refused(address: str) -> None:
    assert addresses.refused(address, ())


@pytest.mark.parametrize("address", ["151.101.0.223", "8.8.8.8", "2a04:4e42::223", "172.32.0.1"])
def test_addresses_of_the_internet_are_not_refused(address: str) -> None:
    assert addresses.refused(address, ()) == ""
    assert addresses.refused(address, (), own=[address])


def test_the_policy_can_name_inner_addresses() -> None:
    assert addresses.refused("10.1.2.3", [ip_network("10.1.2.0/24")]) == ""
    assert addresses.refused("10.1.3.3", [ip_network("10.1.2.0/24")])

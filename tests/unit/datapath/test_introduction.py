"""What a worker was told of guests, as an endpoint learns it."""

from __future__ import annotations

from tproxy import proxy_protocol
from tproxy.datapath.introduction import Introductions
from tproxy.datapath.membership import SEVERAL, WAIT
from tproxy.model import Network, ServiceKey
from tproxy.proxy_protocol import OF_NETWORK, OF_PORT

BLUE, RED = Network("blue", "7"), Network("red", "8")
ONE, TWO = "02:00:0a:00:00:05", "02:00:0a:00:00:06"
BOTH = ((1, BLUE), (2, RED))


def values(found: Introductions, mac: str, network: int = 0) -> tuple[str | None, str | None]:
    """The network's name and the port."""
    key = ServiceKey(80, network=network)
    said = proxy_protocol.decode(found.header(1, "br0", key, ("10.0.0.5", 4), mac)).values
    return said.get(OF_NETWORK), said.get(OF_PORT)


def test_the_only_network_of_a_bridge_is_everybodys() -> None:
    found = Introductions()
    found.use_networks("br0", True, True, "node7", ((2, BLUE),), (), ())
    assert values(found, ONE) == ("blue", None)


def test_the_network_is_that_of_the_port_or_of_the_mac() -> None:
    found = Introductions()
    found.use_networks("br0", True, True, "node7", BOTH, ((ONE, 1),), (("vnet9", TWO, 2),))
    found.use_ports("br0", True, ((ONE, "vnet0"), (TWO, "vnet9")))
    assert [values(found, each) for each in (ONE, TWO)] == [("blue", "vnet0"), ("red", "vnet9")]
    found.use_ports("br0", False, ((ONE, SEVERAL), (TWO, "")))
    assert [values(found, each) for each in (ONE, TWO)] == [(None, None), (None, None)]


def test_the_network_of_a_service_of_one_network_alone_is_that_one() -> None:
    found = Introductions()
    found.use_networks("br0", True, True, "node7", BOTH, (), ())
    assert values(found, ONE, network=2) == ("red", None)


def test_a_long_list_counts_when_it_is_complete() -> None:
    found = Introductions()
    assert found.judge("br0", ONE).network == WAIT  # nothing was said of this bridge
    found.use_networks("br0", True, True, "node7", BOTH, ((ONE, 1),), ())
    found.use_networks("br0", True, False, "node7", BOTH, ((TWO, 1),), ())
    assert [found.judge("br0", each).network for each in (ONE, TWO)] == [1, 0]
    found.use_networks("br0", False, True, "node7", BOTH, ((ONE, 2),), ())
    assert [found.judge("br0", each).network for each in (ONE, TWO)] == [2, 1]

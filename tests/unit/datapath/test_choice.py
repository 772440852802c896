"""Which connections an operator means."""

from __future__ import annotations

import pytest

from tproxy.datapath.choice import Choice
from tproxy.datapath.target import Target
from tproxy.errors import ProtocolError
from tproxy.model import Endpoint, Service, ServiceKey


def target(bridge: str = "br0", name: str = "web", port: int = 80, protocol: str = "tcp") -> Target:
    made = Target(bridge, Service(ServiceKey(port, protocol), Endpoint("10.0.0.1", 8080)))
    made.label = f"{name}:{made.service.key.in_words}" if name else made.service.key.in_words
    return made


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["all"], True),
        ([], False),
        (["bridge=br0"], True),
        (["bridge=br1"], False),
        (["bridge=br1", "bridge=br0"], True),
        (["service=web"], True),
        (["service=80"], True),
        (["service=web:80"], True),
        (["service=we"], False),
        (["service=8"], False),
        (["guest=10.0.0.5/32"], True),
        (["guest=10.0.0.0/24"], True),
        (["guest=0.0.0.0/0"], True),
        (["guest=10.0.1.0/24"], False),
        (["guest=::/0"], False),
        (["guest=10.0.1.0/24", "guest=10.0.0.0/29"], True),
        (["id=abc-1"], True),
        (["id=abc-11"], False),
        (["bridge=br0", "guest=10.0.0.6/32"], False),
        (["all", "bridge=br1"], False),
    ],
    ids=str,
)
def test_a_connection_is_chosen_if_each_kind_of_word_fits(words: list[str], chosen: bool) -> None:
    assert Choice(words).has(target(), "10.0.0.5", "abc-1") == chosen


def test_a_guest_can_be_chosen_by_its_ipv6_address() -> None:
    assert Choice(["guest=fe80::/10"]).has(target(), "fe80::5", "abc-1")
    assert not Choice(["guest=fe80::6/128"]).has(target(), "fe80::5", "abc-1")


def test_a_service_without_a_name_is_chosen_by_its_port() -> None:
    assert Choice(["service=53/udp"]).has(target(name="", port=53, protocol="udp"), "10.0.0.5", "abc-1")
    assert Choice(["service=53"]).has(target(name="dns", port=53, protocol="udp"), "10.0.0.5", "abc-1")


def test_a_mac_is_asked_for_apart() -> None:
    choice = Choice(["mac=02:00:00:00:00:01"])
    assert choice.has(target(), "10.0.0.5", "abc-1")
    assert choice.has_mac("02:00:00:00:00:01")
    assert not choice.has_mac("")
    assert Choice(["all"]).has_mac("")


@pytest.mark.parametrize(
    "word", ["", "al", "bridge", "colour=red", "guest=", "guest=10.0.0.5", "guest=10.0.0.5/33", "guest=x/3"]
)
def test_words_that_are_not_understood_choose_nothing(word: str) -> None:
    with pytest.raises(ProtocolError):
        Choice([word])

"""Host names of entries: which of their addresses is used, and what happens while they have none."""

from __future__ import annotations

import socket
from unittest import mock

import pytest

from tests.keys import keys
from tests.unit.config.files import VNET1, Load, entry, resolve, services
from tproxy.config.resolver import addresses_of, services_for
from tproxy.model import Endpoint, Service, ServiceKey


def test_each_hook_chooses_the_same_one_of_several_addresses(loaded: Load) -> None:
    found = loaded(entry(remote_addr="one.example"))
    for answer in (["10.0.0.10", "10.0.0.2"], ["10.0.0.2", "10.0.0.10"]):
        chosen, _ = services_for(found, VNET1, lambda asked, answer=answer: answer)  # type: ignore[misc]  # mypy: no type
        assert chosen[ServiceKey(80)].endpoint.address == "10.0.0.2"


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"), True),
        (socket.gaierror(socket.EAI_SYSTEM, "System error"), True),
        (OSError(24, "Too many open files"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (UnicodeError("label too long"), False),
    ],
)
def test_a_name_keeps_its_address_while_no_name_server_answers(
    loaded: Load, error: Exception, kept: bool
) -> None:
    def unanswered(name: str) -> list[str]:
        raise error

    found = loaded("tproxy: [{remote_addr: one.example, remote_port: 80, name: api}]")
    before, _ = services(found)
    after, (problem,) = services_for(found, VNET1, unanswered, before.get)
    assert after == (before if kept else {})
    assert problem.text.endswith(": 10.0.0.2:80, 10.0.0.10:80 as before" if kept else ": entry skipped")
    # A port that is another service by now does not keep its endpoint.
    assert services_for(found, VNET1, unanswered)[0] == {}
    other = {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.2", 81))}
    assert services_for(found, VNET1, unanswered, other.get)[0] == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.example", "does not resolve: Name or service not known"),
        ("loop.example", "resolves to no address that can be used"),
    ],
)
def test_a_name_without_a_usable_address_is_skipped_and_the_others_apply(
    loaded: Load, name: str, reason: str
) -> None:
    found = loaded(
        "tproxy:\n"
        f"- {{remote_addr: {name}, remote_port: 80}}\n"
        "- {remote_addr: one.example, remote_port: 81}\n"
        "- {remote_addr: 10.0.0.1, remote_port: 82}\n"
    )
    before = {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.9", 80))}
    chosen, (problem,) = services_for(found, VNET1, resolve, before.get)
    assert chosen.keys() == {*keys(81, 82)}
    assert problem.at("tproxy.yaml") == (
        f"tproxy.yaml:2: entry 1: remote_addr '{name}' {reason}: entry skipped"
    )


def test_a_name_is_looked_up_once(loaded: Load) -> None:
    content = "tproxy:\n" + "- {remote_addr: gone.example, remote_port: %d}\n" * 3 % (1, 2, 3)
    resolver = mock.Mock(side_effect=OSError(-3, "Temporary failure in name resolution"))
    chosen, warnings = services_for(loaded(content), VNET1, resolver)
    assert not chosen
    assert len(warnings) == 3
    resolver.assert_called_once_with("gone.example")


def test_the_resolver_returns_addresses_or_raises_oserror() -> None:
    # An address needs no name server, and not even a hosts file.
    assert addresses_of("10.0.0.1") == ["10.0.0.1"]
    assert addresses_of("fd00::1") == ["fd00::1"]
    with pytest.raises(socket.gaierror):
        addresses_of("10.0.0.1.")

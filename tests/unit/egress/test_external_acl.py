"""The helper answers squid's lines by the policy, and denies what it cannot read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.egress.policies import TEXT
from tproxy.egress.ledger.chain import LedgerError
from tproxy.egress.ledger.entries import Event
from tproxy.egress.policy.current import Current
from tproxy.egress.squid import external_acl
from tproxy.egress.squid.progress import Progress


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Current:
    path = tmp_path_factory.mktemp("policy") / "egress.yaml"
    path.write_text(TEXT + "clients: {10.1.0.0/16: build}\nlimits: {bytes_per_second: 10k}\n")
    return Current(path)


def line(word: str = external_acl.BY_HEADER, **values: str) -> str:
    said = {"method": "GET", "url": "https://pypi.org/simple/requests/", "network": "build", **values}
    return (
        " ".join(["7", *(quote(said.get(name, "-"), safe="") for name in external_acl.FIELDS), word]) + "\n"
    )


def ask(current: Current, *lines: str) -> list[str]:
    nothing = Progress(Path("/nonexistent"), "a")
    return external_acl.Helper(current, nothing, None, lambda text: None).answers(lines)


def test_a_request_is_answered_under_its_number(current: Current) -> None:
    (found,) = ask(current, line())
    assert found.startswith("7 OK ")
    assert " to=mirror" in found
    assert " rate=10000" in found


def test_the_guest_is_the_tag_that_limits_count_by(current: Current) -> None:
    found = ask(current, line(bridge_port="vnet1"), line(bridge_port="vnet2"))
    assert len({each.partition(" tag=")[2].split()[0] for each in found}) == 2


def test_the_network_of_a_host_follows_from_its_address_and_not_from_a_header(current: Current) -> None:
    clients = external_acl.BY_CLIENTS
    inside, outside = line(clients, address="10.1.2.3", network=""), line(clients, address="10.2.2.3")
    found = ask(current, inside, outside)
    assert [each.split()[1] for each in found] == ["OK", "ERR"]


@pytest.mark.parametrize(
    ("connected", "url", "expected"),
    [
        ("pypi.org:443", "https://pypi.org/simple/requests/", "OK"),
        ("host.example:443", "https://pypi.org/simple/requests/", "ERR"),
        ("pypi.org:443", "http://pypi.org/simple/requests/", "ERR"),
        ("pypi.org:443", "https://pypi.org:8443/simple/requests/", "ERR"),
    ],
)
def test_a_request_inside_a_connection_is_for_its_host(
    current: Current, connected: str, url: str, expected: str
) -> None:
    assert ask(current, line(connected=connected, url=url))[0].split()[1] == expected


def test_a_tunnel_is_spliced_only_for_its_server_name(current: Current) -> None:
    connected = "tunnel/pinned.example:443"
    found = ask(
        current,
        line(method="CONNECT", url="-", host="pinned.example", port="443"),
        line(external_acl.SPLICING, connected=connected, server_name="Pinned.example"),
        line(external_acl.SPLICING, connected=connected, server_name="other.example"),
        line(external_acl.SPLICING, connected=connected, server_name=""),
    )
    assert "clt_conn_tag=tunnel/pinned.example:443 way=tunnel" in found[0]
    assert [each.split()[1] for each in found] == ["OK", "OK", "ERR", "ERR"]


@pytest.mark.parametrize(
    "text", ["7\n", "7 a b\n", "\n", line("unknown"), line(network="%ff"), line(port="x")]
)
def test_what_cannot_be_read_is_denied(current: Current, text: str) -> None:
    text = text.replace("%25ff", "%ff")
    if "port" not in text:
        assert ask(current, text)[0].split()[-3:][0] != "OK"


def test_what_cannot_be_recorded_is_refused_and_what_the_mirror_records_goes_on(current: Current) -> None:
    sent: list[Event] = []

    def record(events: Sequence[Event]) -> None:
        sent.extend(events)
        raise LedgerError("the disk is full")

    asked = external_acl.Helper(current, Progress(Path("/nonexistent"), "a"), record, lambda text: None)
    mirrored, plain, denied = asked.answers(
        [
            line(),
            line(url="https://host.example/releases/x"),
            line(url="https://x.example/"),
        ]
    )
    assert " OK " in mirrored
    for found in (plain, denied):
        assert " ERR message=this%20cannot%20be%20recorded" in found
        assert " refused=unrecorded" in found
        assert " network=build" in found
    assert [each.verdict for each in sent] == ["begun", "denied"]


def test_lines_that_arrive_in_pieces_are_put_together() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\nth")
    found = external_acl.batches(reader)
    assert next(found) == ["one", "two"]
    os.write(writer, b"ree\n")
    assert next(found) == ["three"]
    os.close(writer)
    assert list(found) == []
    os.close(reader)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=80))
def test_no_line_makes_it_allow_or_end(current: Current, text: str) -> None:
    (found,) = ask(current, text)
    assert " ERR " in found


@given(st.text(max_size=40))
def test_text_of_a_guest_cannot_add_notes_or_lines(current: Current, text: str) -> None:
    found = ask(current, line(network=text.encode("utf-8", "replace").decode(), url="https://x.example/"))
    assert len(found) == 1
    assert found[0].count("\n") == 1
    assert " OK " not in found[0]
    assert "<" not in found[0]

"""What squid answers by itself gets into the ledger, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tproxy.egress.ledger.follower import Follower, events
from tproxy.egress.ledger.tail import MOST
from tproxy.egress.policy.rules import Upstreams


def line(**fields: str) -> str:
    """Return a line as squid writes it."""
    entry = {
        "network": "build",
        "address": "10.0.0.5",
        "mac": "02::1",
        "port": "vnet0",
        "hypervisor": "hv1",
        "network_id": "-",
        "bridge": "br0",
        "method": "GET",
        "url": "https://host.example/a",
        "status": "200",
        "cache": "TCP_MISS",
        "way": "HIER_DIRECT",
        "rule": "egress.yaml:3",
        "bytes": "7",
        **fields,
    }
    return json.dumps({name: quote(text, safe="") for name, text in entry.items()})


def of(**fields: str) -> list[dict[str, Any]]:
    return [each.as_json() for each in events([line(**fields)], Upstreams())]


def test_a_plain_url_is_recorded_with_its_caller() -> None:
    (found,) = of()
    assert found["verdict"] == "allowed"
    assert (found["network"], found["guest"], found["mac"], found["port"]) == (
        *("build", "10.0.0.5"),
        *("02::1", "vnet0"),
    )
    assert (found["name"], found["bytes"], found["rule"]) == ("https://host.example/a", 7, "egress.yaml:3")
    assert "network_id" not in found


def test_a_denial_names_what_was_asked_for() -> None:
    (found,) = of(url="https://pypi.org/simple/Evil/", status="403", cache="TCP_DENIED", rule="none")
    assert (found["verdict"], found["kind"], found["name"]) == ("denied", "pypi", "evil")
    assert found["reason"] == "no rule allows it"
    (found,) = of(method="CONNECT", url="evil.example:443", status="403", cache="TCP_DENIED", rule="none")
    assert (found["kind"], found["name"]) == ("uri", "evil.example:443")
    (found,) = of(url="https://host.example/x", status="403", way="HIER_NONE", rule="egress.yaml:9")
    assert found["reason"] == "denied by egress.yaml:9"


@pytest.mark.parametrize(
    "fields",
    [
        {"way": "FIRSTUP_PARENT"},
        {"way": "FIRSTUP_PARENT", "status": "403"},
        {"method": "CONNECT", "url": "pypi.org:443"},
        {"status": "404"},
        {"status": "502"},
    ],
)
def test_what_the_mirror_recorded_and_what_was_not_served_is_passed_over(fields: dict[str, str]) -> None:
    assert of(**fields) == []


def test_a_tunnel_is_recorded_as_opaque() -> None:
    (found,) = of(method="CONNECT", url="pinned.example:443", rule="tunnel", cache="TCP_TUNNEL")
    assert found["verdict"] == "allowed"
    assert "not seen" in found["reason"]


def test_lines_that_are_none_of_ours_are_passed_over() -> None:
    assert list(events(["", "no JSON", "[]", "{}", '{"way": 1}'], Upstreams())) == []


def test_each_line_is_taken_once_also_after_a_restart_and_only_when_it_is_whole(tmp_path: Path) -> None:
    log, place = tmp_path / "access.json", tmp_path / "place"
    follower = Follower(log, place)
    assert follower.new() == []
    log.write_text("one\ntwo\nthr")
    assert follower.new() == ["one", "two"]
    follower.keep()
    with log.open("a") as file:
        file.write("ee\n")
    assert follower.new() == ["three"]  # and the process ends before they are in the ledger
    again = Follower(log, place)
    assert again.new() == ["three"]
    again.keep()
    assert Follower(log, place).new() == []


def test_a_log_that_was_moved_away_or_truncated_is_read_from_its_beginning(tmp_path: Path) -> None:
    log, place = tmp_path / "access.json", tmp_path / "place"
    log.write_text("one\ntwo\n")
    follower = Follower(log, place)
    assert len(follower.new()) == 2
    log.rename(tmp_path / "access.json.1")
    log.write_text("three\n")
    assert follower.new() == ["three"]
    log.write_text("4\n")
    assert follower.new() == ["4"]


def test_a_large_log_is_read_in_parts(tmp_path: Path) -> None:
    log = tmp_path / "access.json"
    text = ("x" * 99_999 + "\n") * (2 * MOST // 100_000)
    log.write_text(text)
    follower, found = Follower(log, tmp_path / "place"), 0
    while lines := follower.new():
        assert sum(map(len, lines)) < MOST
        found += len(lines)
    assert found == text.count("\n")

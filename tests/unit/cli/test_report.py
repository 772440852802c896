"""The views of ``tproxy status``, from the daemon's answer."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tproxy.cli import report, tables

PROCESSES = [("one_tproxy", 16803), ("one_tproxy_br0", 16809)]


def service(**different: Any) -> dict[str, Any]:
    return {
        "port": 5030,
        "name": "",
        "endpoint": "10.11.12.13:8080",
        "listening": True,
        "problem": "",
        "open": 0,
        "total": 0,
        "bytes_to_endpoint": 0,
        "bytes_to_guest": 0,
        "last_error": "",
        "last_error_at": None,
    } | different


def daemon(*services: dict[str, Any], network: str = "", network_id: str = "") -> dict[str, Any]:
    br0 = {
        "network": network,
        "network_id": network_id,
        "networks": [{"name": network, "id": network_id}],
        "relay": 16809,
        "services": list(services),
        "obstacles": [],
    }
    worker = {"pid": 16810, "draining": False, "open": 3, "cpu_seconds": 1.25, "bridges": []}
    return {"connections": 3, "workers": [worker], "bridges": {"br0": br0}}


def text_of(processes: report.Lines, daemon: dict[str, Any] | None) -> str:
    """What a file gets."""
    blocks = report.as_tables(processes, daemon)
    return "\n\n".join(each if isinstance(each, str) else tables.plain(each) for each in blocks)


def rows(text: str) -> list[list[str]]:
    """Return the rows of the table of services, each cut into columns by the line under the heading."""
    lines = text.partition("\n\nworker")[0].splitlines()
    (ruler,) = [i for i, line in enumerate(lines) if line.startswith("--")]
    ends = [0]
    for column in lines[ruler].split("  "):
        ends.append(ends[-1] + len(column) + 2)
    return [
        [line[a:b].strip() for a, b in pairwise(ends)]
        for line in lines[ruler - 1 :]
        if line and not line.startswith("--") and "open connections" not in line
    ]


def test_the_table_starts_with_the_lines_of_the_contract() -> None:
    text = text_of(PROCESSES, daemon(service()))
    assert text.startswith("one_tproxy: 16803\none_tproxy_br0: 16809\n\n")
    assert text.endswith("\n\n3 open connections")


def test_each_service_has_a_row() -> None:
    busy = service(
        name="web", open=2, total=17, bytes_to_endpoint=999, bytes_to_guest=5 * 1024**3, last_error=""
    )
    head, row = rows(text_of(PROCESSES, daemon(busy, network="blue", network_id="7")))
    assert dict(zip(head, row, strict=True)) == {
        "bridge": "br0",
        "network": "blue (7)",
        "port": "5030",
        "name": "web",
        "endpoint": "10.11.12.13:8080",
        "state": "listening",
        "open": "2",
        "total": "17",
        "to endpoint": "999 B",
        "to guest": "5.0 GiB",
        "last error": "",
    }


def test_a_port_that_does_not_listen_shows_the_reason() -> None:
    stuck = service(listening=False, problem="Address already in use")
    head, row = rows(text_of(PROCESSES, daemon(stuck)))
    assert row[head.index("state")] == "Address already in use"


def test_an_error_is_shown_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    failed = service(last_error="Connection refused", last_error_at=86400.0)
    assert "Connection refused (1970-01-02 00:00:00)" in text_of(PROCESSES, daemon(failed))


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [("", "", ""), ("blue", "", "blue"), ("", "7", "(7)"), ("blue", "0", "blue (0)")],
)
def test_a_network_is_shown_by_its_name_and_id_as_far_as_known(name: str, number: str, shown: str) -> None:
    head, row = rows(text_of(PROCESSES, daemon(service(), network=name, network_id=number)))
    assert row[head.index("network")] == shown


def test_numbers_and_names_are_shown_as_they_are() -> None:
    """A network called 1e5 or 007 is not shown as a number."""
    head, row = rows(text_of(PROCESSES, daemon(service(name="007"), network="1e5")))
    assert (row[head.index("network")], row[head.index("name")]) == ("1e5", "007")


def test_without_a_daemon_only_the_processes_are_shown() -> None:
    assert text_of(PROCESSES[1:], None) == "one_tproxy_br0: 16809"
    assert text_of([], None) == "nothing is running"


def test_json_shows_everything_and_null_without_a_daemon() -> None:
    said = daemon(service(name="q\"'é"))
    assert json.loads(report.as_json(PROCESSES, said)) == {
        "version": 1,
        "processes": [{"title": "one_tproxy", "pid": 16803}, {"title": "one_tproxy_br0", "pid": 16809}],
        "daemon": said,
    }
    assert json.loads(report.as_json([], None)) == {"version": 1, "processes": [], "daemon": None}


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\udcff", "tab\there"])
def test_a_hostile_name_is_escaped_and_stays_on_its_line(name: str) -> None:
    plain = text_of(PROCESSES, daemon(service(), network="x"))
    text = text_of(PROCESSES, daemon(service(name=name), network=name))
    text.encode()  # can be printed
    assert text.count("\n") == plain.count("\n")
    assert all(character.isprintable() or character == "\n" for character in text)


def test_all_networks_of_a_bridge_are_shown() -> None:
    answer = daemon(service())
    answer["bridges"]["br0"]["networks"] = [{"name": "blue", "id": "0"}, {"name": "red", "id": ""}]
    assert rows(text_of(PROCESSES, answer))[1][1] == "blue (0), red"


def test_a_port_that_listens_behind_an_obstacle_does_not_look_in_order() -> None:
    answer = daemon(service(), service(port=5031, listening=False, problem="Address already in use"))
    answer["bridges"]["br0"]["obstacles"] = [
        {"kind": "STP", "text": "port br0b does not forward yet"},
        {"kind": "VLAN", "text": "port br0b has no PVID"},
    ]
    text = text_of(PROCESSES, answer)
    listed, _, notes = text.partition("\n\nbr0: ")
    head, first, second = rows(listed)
    assert first[head.index("state")] == "listening, but: STP, VLAN"
    assert second[head.index("state")] == "Address already in use"
    assert notes.startswith("port br0b does not forward yet\nbr0: port br0b has no PVID\n\nworker")

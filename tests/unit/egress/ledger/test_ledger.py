"""The ledger: edits, gaps and truncation are found, and what cannot be written was not written."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tproxy.egress.ledger import chain, queries
from tproxy.egress.ledger.chain import Head, Ledger, LedgerError, entries, problems, segments
from tproxy.egress.ledger.entries import Event
from tproxy.egress.model import Artifact, Caller


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger")
    yield opened
    opened.close()


def fill(ledger: Ledger, count: int = 5) -> Path:
    for number in range(count):
        ledger.append({"verdict": "denied" if number % 2 else "allowed", "name": f"p{number}"})
    return segments(ledger.directory)[0]


def found(ledger: Ledger, *known: Head) -> list[str]:
    return list(problems(ledger.directory, list(known)))


def test_a_chain_that_nobody_touched_has_no_problems(ledger: Ledger) -> None:
    fill(ledger)
    assert found(ledger, ledger.head()) == []
    assert [entry["n"] for entry in entries(ledger.directory)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("line", range(5))
def test_an_edit_is_found(ledger: Ledger, line: int) -> None:
    path = fill(ledger)
    head = ledger.head()
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace(f'"p{line}"', '"px"')
    path.write_text("".join(lines))
    assert found(ledger, head)


@pytest.mark.parametrize("line", range(5))
def test_a_removed_line_is_found(ledger: Ledger, line: int) -> None:
    path = fill(ledger)
    head = ledger.head()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:line] + lines[line + 1 :]))
    assert found(ledger, head)


def test_a_chain_that_was_written_anew_is_found_by_a_head(ledger: Ledger, tmp_path: Path) -> None:
    path = fill(ledger)
    head = ledger.head()
    other = Ledger(tmp_path / "other")
    for number in range(5):
        other.append({"verdict": "allowed", "name": f"q{number}"})
    path.write_bytes(segments(other.directory)[0].read_bytes())
    other.close()
    assert found(ledger) == []
    assert found(ledger, head) == ["entry 5 is not the one that a signed head names"]


def test_two_processes_write_one_chain(ledger: Ledger) -> None:
    program = (
        "import sys; from pathlib import Path; from tproxy.egress.ledger.chain import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\nfor n in range(200): ledger.append({'name': sys.argv[2]})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(ledger.directory), name]) for name in "abc"
    ]
    for number in range(100):
        ledger.append({"name": f"us{number}"})
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert found(ledger, ledger.head()) == []
    assert ledger.head().number == 700


def test_segments_are_one_chain(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "SEGMENT", 300)
    fill(ledger, 20)
    assert len(segments(ledger.directory)) > 3
    again = Ledger(ledger.directory)
    again.append({"name": "last"})
    assert found(ledger, again.head()) == []
    segments(ledger.directory)[1].unlink()
    assert found(ledger)
    again.close()


def test_a_line_cut_off_by_a_power_cut_is_removed_and_noted(ledger: Ledger) -> None:
    path = fill(ledger)
    with path.open("ab") as file:
        file.write(b'{"n":6,"prev":"')
    again = Ledger(ledger.directory)
    again.append({"name": "next"})
    *_, note, last = entries(ledger.directory)
    assert (note["verdict"], last["name"], last["n"]) == ("repaired", "next", 7)
    assert found(ledger) == []
    again.close()


def test_on_a_full_disk_nothing_is_added(ledger: Ledger) -> None:
    """A limit of the file's size stands for the disk: the write is cut off in the middle."""
    path = fill(ledger)
    before, size = path.read_bytes(), path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
    try:
        with pytest.raises(LedgerError, match="cannot write to the ledger"):
            ledger.append({"name": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    ledger.append({"name": "again"})
    assert found(ledger) == []


def test_what_was_blocked_is_grouped() -> None:
    caller = Caller(network="vnet1", address="10.0.0.1")
    denied = Event.of(caller, Artifact("pypi", "requests", "2.0"), "denied", reason="no rule").as_json()
    lines = [{"time": "2026-01-01T00:00:00Z", **denied}, {"time": "2026-01-01T01:00:00Z", **denied}]
    lines.append({"time": "2026-01-01T01:00:00Z", "verdict": "allowed", "name": "x"})
    (group,) = queries.blocked(lines)
    assert (group.network, group.name, group.count, group.last) == (
        "vnet1",
        "requests",
        2,
        "2026-01-01T01:00:00Z",
    )
    hour_later = 1767229200.0 + 60  # 2026-01-01T01:01:00Z
    assert len(list(queries.since(lines, queries.seconds("1h"), hour_later))) == 2


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1y"])
def test_a_wrong_time_is_refused(text: str) -> None:
    with pytest.raises(LedgerError):
        queries.seconds(text)


def test_texts_of_guests_are_bounded() -> None:
    event = Event.of(Caller(), Artifact("uri", url="http://x/" + "a" * 10_000), "denied")
    assert max(len(text) for text in event.as_json().values() if isinstance(text, str)) == 2000

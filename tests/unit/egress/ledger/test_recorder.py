"""Events are on the disk before those who wait go on, and many wait for one write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tproxy.egress.ledger import recorder
from tproxy.egress.ledger.chain import Ledger, LedgerError, entries, problems, segments
from tproxy.egress.ledger.entries import Event
from tproxy.egress.ledger.recorder import Recorder
from tproxy.egress.ledger.sending import Sender


class Counted(Ledger):
    """Counts how often it was synced."""

    syncs = 0

    def sync(self) -> None:
        super().sync()
        self.syncs += 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Counted]:
    found = Counted(tmp_path / "ledger")
    yield found
    found.close()


def names(ledger: Ledger) -> list[str]:
    return [str(each["name"]) for each in entries(ledger.directory)]


def test_all_who_wait_share_a_write(ledger: Counted) -> None:
    async def work() -> None:
        found = Recorder(ledger)
        await asyncio.gather(*(found.record(Event("denied", name=str(number))) for number in range(200)))

    asyncio.run(work())
    assert sorted(map(int, names(ledger))) == list(range(200))
    assert list(problems(ledger.directory, [ledger.head()])) == []
    assert ledger.syncs < 10


def test_what_was_not_written_raises_and_later_events_are_written_again(ledger: Counted) -> None:
    async def work() -> None:
        found = Recorder(ledger)
        await found.record(Event("denied", name="before"))
        ledger.directory.rename(ledger.directory.with_name("away"))
        ledger.directory.write_text("no directory")
        with pytest.raises(LedgerError):
            await asyncio.gather(found.record(Event("denied", name="lost")))
        ledger.directory.unlink()
        ledger.directory.with_name("away").rename(ledger.directory)
        await found.record(Event("denied", name="after"))

    asyncio.run(work())
    assert names(ledger) == ["before", "after"]


def test_a_file_that_was_removed_is_not_written_to(ledger: Counted) -> None:
    """What is written to a file without a name is lost with the process."""
    ledger.append({"name": "before"})
    (path,) = segments(ledger.directory)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # restored from a copy
    ledger.append({"name": "after"})
    assert names(ledger) == ["before", "after"]


def test_the_other_process_learns_whether_its_events_are_on_the_disk(ledger: Counted, tmp_path: Path) -> None:
    socket = tmp_path / "ledger.sock"

    async def work() -> None:
        server = await recorder.serve(Recorder(ledger), socket, os.getuid())
        assert socket.stat().st_mode & 0o777 == 0o600
        sender = Sender(socket)
        await asyncio.to_thread(sender.record, [Event("denied", name="one"), Event("denied", name="two")])
        assert names(ledger) == ["one", "two"]
        (path,) = segments(ledger.directory)
        path.unlink()
        path.mkdir()  # nobody can write there
        with pytest.raises(LedgerError, match="cannot write to the ledger"):
            await asyncio.to_thread(sender.record, [Event("denied", name="three")])
        path.rmdir()
        await asyncio.to_thread(sender.record, [Event("denied", name="four")])
        sender.close()
        server.close()

    asyncio.run(work())
    assert names(ledger) == ["four"]


def test_without_anybody_who_writes_only_the_first_call_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.egress.ledger.sending.PATIENCE", 0.2)
    sender, pauses = Sender(tmp_path / "none"), list[float]()
    monkeypatch.setattr("tproxy.egress.ledger.sending.time.sleep", pauses.append)
    with pytest.raises(LedgerError, match="nobody writes the ledger"):
        sender.record([Event("denied")])
    waited = len(pauses)
    with pytest.raises(LedgerError, match="nobody writes the ledger"):
        sender.record([Event("denied")])
    assert 0 < waited == len(pauses)

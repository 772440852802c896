"""The store: what is in it is right, survives a power cut, and fits into its quota."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tproxy.egress.store.quota import Kept, room_of_disk, victims
from tproxy.egress.store.records import Damaged, NoRoom, Record, StoreError, record_from
from tproxy.egress.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def add(store: Store, content: bytes, name: str = "demo", file: str = "demo-1.whl") -> Record:
    record = Record("pypi", name, file, store.blobs.put(content), len(content), version="1")
    store.add(record)
    return record


def test_a_blob_is_found_by_its_hash(store: Store) -> None:
    sha256 = store.blobs.put(b"content")
    assert sha256 == hashlib.sha256(b"content").hexdigest()
    path = store.blobs.find(sha256)
    assert path is not None
    assert path.read_bytes() == b"content"


def test_content_with_another_hash_is_refused_and_leaves_nothing(store: Store) -> None:
    expected = hashlib.sha256(b"right").hexdigest()
    with pytest.raises(Damaged, match="and not"):
        store.blobs.put(b"wrong", expected)
    with store.blobs.writer(expected) as file:
        file.write(b"wrong")
        with pytest.raises(Damaged):
            file.commit()
    assert list(store.blobs.all()) == []
    assert list(store.blobs.partial.iterdir()) == []


@pytest.mark.parametrize("damage", [b"short", b"longer than before", b"conten!"])
def test_a_changed_blob_goes_to_quarantine_and_can_be_stored_again(store: Store, damage: bytes) -> None:
    sha256 = store.blobs.put(b"content")
    store.blobs.path(sha256).write_bytes(damage)
    assert store.blobs.find(sha256) is None
    assert [path.read_bytes() for path in store.blobs.quarantined.iterdir()] == [damage]
    store.blobs.put(b"content")
    assert store.blobs.find(sha256) is not None


def test_scrub_finds_damage_that_left_size_and_time_alone(store: Store) -> None:
    good, bad = store.blobs.put(b"good"), store.blobs.put(b"content")
    path = store.blobs.path(bad)
    before = path.stat()
    path.write_bytes(b"c0ntent")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    sizes: list[int] = []
    assert store.blobs.scrub(sizes.append) == [bad]
    assert sorted(sizes) == [4, 7]
    assert store.blobs.find(bad) is None
    assert store.blobs.find(good) is not None


def test_after_a_power_cut_a_renamed_blob_is_used_once_it_was_checked(tmp_path: Path) -> None:
    """The rename reached the disk, the database's last transactions did not."""
    store = Store(tmp_path)
    sha256, torn = store.blobs.put(b"content"), store.blobs.put(b"torn")
    store._database.execute("DELETE FROM blobs")
    store.blobs.path(torn).write_bytes(b"to")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (store.blobs.partial / f"w.{dead.pid}.x").write_bytes(b"half")
    store.close()
    again = Store(tmp_path)
    again.blobs.adopt_all()
    assert again.blobs.find(sha256) is not None
    assert again.blobs.find(torn) is None
    assert list(again.blobs.partial.iterdir()) == []
    again.close()


WRITES = """
import sys; from pathlib import Path; from tproxy.egress.store.store import Store
store = Store(Path(sys.argv[1])); print(flush=True); n = 0
while True: n += 1; store.blobs.put(str(n).encode() * 5000)
"""


@pytest.mark.parametrize("writes", [1, 7, 40])
def test_a_writer_that_is_killed_leaves_whole_blobs_only(tmp_path: Path, writes: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITES, tmp_path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    while writer.poll() is None and len(list((tmp_path / "blobs").glob("??/*"))) < writes:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = Store(tmp_path)
    store.blobs.adopt_all()
    assert len(list(store.blobs.all())) >= writes
    assert store.blobs.scrub() == []
    assert list(store.blobs.partial.iterdir()) == []
    store.close()


def test_two_processes_may_have_one_store_open(store: Store) -> None:
    other = Store(store.root)
    record = add(store, b"content")
    assert other.find(*record.key) == record
    other.close()


def test_the_longest_unused_is_evicted_with_its_records(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=25)
    old, new = add(store, b"a" * 10, file="old"), add(store, b"b" * 10, file="new")
    store._database.execute("UPDATE blobs SET used = 1 WHERE sha256 = ?", (old.sha256,))
    add(store, b"c" * 10, file="third")
    assert store.find(*old.key) is None
    assert store.blobs.find(old.sha256) is None
    assert store.find(*new.key) == new
    assert store.used() == 20
    store.close()


def test_a_tenth_of_the_disk_stays_free_but_4_gb_at_most() -> None:
    assert room_of_disk(free=50, total=100) == 40
    assert room_of_disk(free=5, total=100) == -5
    assert room_of_disk(free=50 << 30, total=400 << 30) == 46 << 30


def test_a_file_of_unknown_size_stays_within_the_quota(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=1000)
    with store.blobs.writer() as file:
        for _ in range(100):
            file.write(b"x" * 10)
        with pytest.raises(NoRoom):
            file.write(b"x")
    assert store.blobs.unfinished == 0
    store.blobs.put(b"x" * 1000)
    store.close()


def test_bundled_and_kept_content_is_never_evicted(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=25)
    bundled, kept = add(store, b"a" * 10, file="bundled"), add(store, b"b" * 10, name="kept")
    store.add_bundle(1, {"manifest.json": manifest(bundled)})
    store.pin([kept.sha256])
    with pytest.raises(NoRoom, match="nothing may be evicted"):
        store.blobs.put(b"c" * 10)
    assert store.blobs.find(bundled.sha256)
    assert store.blobs.find(kept.sha256)
    store.close()


def manifest(*records: Record) -> bytes:
    import json

    return json.dumps({"records": [record.as_json() for record in records]}).encode()


def test_activation_and_rollback_are_one_rename(store: Store) -> None:
    first, second = (Record("pypi", "demo", "demo.whl", store.blobs.put(text), 1) for text in (b"1", b"2"))
    store.add_bundle(1, {"manifest.json": manifest(first)})
    store.add_bundle(2, {"manifest.json": manifest(second)})
    assert store.serial() is None
    assert store.find(*first.key) is None
    store.activate(1)
    assert store.find(*first.key) == first
    store.activate(2)
    assert (store.serial(), store.find(*first.key)) == (2, second)
    store.activate(1)
    assert (store.serial(), store.find(*first.key)) == (1, first)
    with pytest.raises(StoreError, match="bundle 7 is not here; here are"):
        store.activate(7)


def test_a_bundle_comes_before_what_was_fetched(store: Store) -> None:
    add(store, b"fetched", file="one")
    other = add(store, b"other", file="two")
    bundled = Record("pypi", "demo", "one", store.blobs.put(b"bundled"), 7)
    store.add_bundle(1, {"manifest.json": manifest(bundled)})
    store.activate(1)
    assert store.named("pypi", "demo") == {"one": bundled, "two": other}
    assert sorted(record.file for record in store.all()) == ["one", "two"]


def test_what_is_asked_for_and_missing_is_counted(store: Store) -> None:
    for _ in range(3):
        store.want("pypi", "requests", "", "vnet1")
    store.want("oci", "docker.io/library/alpine", "3", "vnet1")
    assert [(each["name"], each["count"]) for each in store.wanted()] == [
        ("docker.io/library/alpine", 1),
        ("requests", 3),
    ]
    store.clear_wanted()
    assert store.wanted() == []


def test_eviction_says_when_it_cannot_help() -> None:
    kept = [Kept("a", 10, 1), Kept("b", 10, 2)]
    assert victims(kept, 5, 30, ()) == []
    assert victims(kept, 10, 20, ()) == ["a"]
    assert victims(kept, 10, 20, {"a"}) == ["b"]
    assert victims(kept, 10, 20, {"a", "b"}) is None
    assert victims(kept, 40, 20, ()) is None


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"sha256": "x"},
        {"sha256": "../" + "a" * 61, "size": 1},
        {"sha256": "a" * 64, "size": -1},
        {"sha256": "a" * 64, "size": True},
        {"sha256": "a" * 64, "size": 1, "name": 3},
    ],
)
def test_a_wrong_record_is_refused(found: object) -> None:
    with pytest.raises(StoreError):
        record_from(found)


def test_a_record_survives_json() -> None:
    record = Record("pypi", "demo", "demo.whl", "a" * 64, 3, version="1", meta={"requires_python": ">=3"})
    assert record_from(record.as_json()) == record
    assert record_from(record.as_json()).meta == record.meta

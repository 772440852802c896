"""The gateway's state: files that commands and the gateway change at the same time."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tproxy.errors import ProcessError
from tproxy.inward.tunnel.records import APPROVED, Node, Operator
from tproxy.inward.tunnel.store import Store

NODE = Node("site-a", "ssh-ed25519 A", APPROVED, 5.0, serials=((7, time.time() + 1000), (8, 1.0)))


def test_what_was_put_is_found_by_everybody_at_once(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    one.prepare()
    assert two.find(Node, "site-a") is None
    one.put(NODE)
    assert two.find(Node, "site-a") == NODE
    two.put(NODE._replace(reason="other"))
    assert one.required(Node, "site-a").reason == "other"
    assert one.all(Node) == [NODE._replace(reason="other")]
    assert one.all(Operator) == []
    with pytest.raises(ProcessError, match="there is no operator 'alice'"):
        one.required(Operator, "alice")


def test_a_removed_nodes_certificates_are_denied_until_they_expire(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.put(NODE)
    store.drop(NODE)
    assert store.find(Node, "site-a") is None
    assert set(store.denied()) == {7}


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    with store.locked():
        store.put(NODE)
    files = [each for each in (tmp_path / "state").rglob("*") if each.is_file()]
    assert {each.name for each in files} == {"lock", "site-a.json"}
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state/nodes/site-a.json").stat().st_mode & 0o077 == 0


def test_changes_wait_for_each_other(tmp_path: Path) -> None:
    def add(number: int) -> None:
        store = Store(tmp_path)
        for each in range(20):
            with store.locked():
                found = store.find(Node, "site-a") or NODE._replace(serials=())
                store.put(found._replace(serials=(*found.serials, (number * 100 + each, 0.0))))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(Store(tmp_path).required(Node, "site-a").serials) == 80


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "site-a"}'])
def test_a_damaged_file_is_named_and_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.prepare()
    (tmp_path / "nodes/site-a.json").write_text(text)
    with pytest.raises(ProcessError, match=r"site-a\.json cannot be used"):
        store.find(Node, "site-a")

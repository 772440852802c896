"""Signed heads of the ledger, with the real minisign."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tproxy.egress.ledger import heads
from tproxy.egress.ledger.chain import Head, Ledger, problems, segments
from tproxy.egress.signing import KeyPair, SigningError, verify


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger")
    yield opened
    opened.close()


def fill(ledger: Ledger) -> Path:
    for number in range(5):
        ledger.append({"verdict": "allowed", "name": f"p{number}"})
    return segments(ledger.directory)[0]


def found(ledger: Ledger, *known: Head) -> list[str]:
    return list(problems(ledger.directory, list(known)))


def test_heads_are_signed_sent_and_show_that_the_end_was_cut(ledger: Ledger, tmp_path: Path) -> None:
    path = fill(ledger)
    key, sent = KeyPair(tmp_path, "ledger"), list[str]()
    head = heads.sign(ledger, key, sent.append)
    assert heads.parse(sent[0]) == head
    assert key.fingerprint in sent[0]
    assert heads.read(ledger.directory, key.public.read_text()) == ([head], [])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    (problem,) = found(ledger, head)
    assert problem == "the ledger ends at entry 3, and a signed head names entry 5: it was cut"
    assert key.secret.stat().st_mode & 0o777 == 0o600


def test_a_forged_head_is_found(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    key = KeyPair(tmp_path, "ledger")
    heads.sign(ledger, key, lambda line: None)
    path = ledger.directory / heads.FILE
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "n": 3}) + "\nno JSON\n")
    good, wrong = heads.read(ledger.directory, key.public.read_text())
    assert good == []
    assert len(wrong) == 2
    other = KeyPair(tmp_path, "other")
    other.create()
    with pytest.raises(SigningError):
        verify(b"content", key.sign(b"content"), other.public.read_text())

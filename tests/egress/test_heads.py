"""Signed heads of the ledger, with the real minisign."""

from __future__ import annotations

import json
import subprocess
import sys
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


NEW_DEV = """\
mkdir "$1/dev" && mount --rbind /dev "$1/dev" && mount -t tmpfs tmpfs /dev
for each in null zero random urandom; do touch /dev/$each; mount --bind "$1/dev/$each" /dev/$each; done
exec "$2" "$3" "$1/ledger" "$1/keys"
"""


def test_syslog_gets_the_head_by_which_a_cut_is_found_later(tmp_path: Path, engines: None) -> None:
    """In a mount namespace of its own, with a syslog of its own."""
    ledger = Ledger(tmp_path / "ledger")
    fill(ledger)
    ledger.close()
    program = str(Path(__file__).with_name("programs") / "syslog_head.py")
    command = ["unshare", "--mount", "sh", "-ec", NEW_DEV, "sh", str(tmp_path), sys.executable, program]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    head = heads.parse(line)
    assert ("tproxy-egress" in line, head.number) == (True, 5)
    assert list(problems(tmp_path / "ledger", [head])) == []
    path = segments(tmp_path / "ledger")[0]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    (tmp_path / "ledger" / heads.FILE).unlink()  # who cuts the ledger can do that as well
    assert any("it was cut" in problem for problem in problems(tmp_path / "ledger", [head]))


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

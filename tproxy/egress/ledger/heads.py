"""Signed heads: each hour the end of the chain is signed, kept, and sent off the node by syslog."""

from __future__ import annotations

import json
import syslog
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tproxy.egress.ledger.chain import Head, Ledger, LedgerError
from tproxy.egress.signing import KeyPair, SigningError, verify

EVERY = 3600  # seconds

FILE = "heads.jsonl"


def statement(head: Head, stamp: str) -> bytes:
    """Return what is signed."""
    return f"tproxy egress ledger: entry {head.number} sha256 {head.hash} at {stamp}".encode()


def sign(ledger: Ledger, key: KeyPair, send: Callable[[str], None] | None = None) -> Head:
    """Sign the head, keep it beside the ledger, and send it. Return it."""
    key.create()
    head = ledger.head()
    ledger.sync()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    signature = key.sign(statement(head, stamp))
    entry = {"n": head.number, "hash": head.hash, "time": stamp, "signature": signature}
    with (ledger.directory / FILE).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    # The signature's own line is the second one; with the key it can be verified without the file.
    line = f"{statement(head, stamp).decode()} signature {signature.splitlines()[1]} key {key.fingerprint}"
    (send or _to_syslog)(line)
    return head


def _to_syslog(line: str) -> None:
    syslog.openlog("tproxy-egress", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_NOTICE, line)


def read(directory: Path, public: str) -> tuple[list[Head], list[str]]:
    """Return the heads that were signed with this key, and what is wrong with the others."""
    path = directory / FILE
    heads, wrong = [], []
    try:
        text = path.read_text()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found: dict[str, Any] = json.loads(line)
            head = Head(int(found["n"]), str(found["hash"]))
            verify(statement(head, str(found["time"])), str(found["signature"]), public)
        except (ValueError, KeyError, TypeError):
            wrong.append(f"{FILE}:{number}: the line is no signed head")
        except SigningError as error:
            wrong.append(f"{FILE}:{number}: {error}")
        else:
            heads.append(head)
    return heads, wrong


def parse(text: str) -> Head:
    """Return the head that a line of syslog names. Raises LedgerError."""
    words = text.split()
    try:
        at = words.index("entry")
        if words[at + 2] != "sha256" or len(words[at + 3]) != 64:
            raise ValueError(text)
        return Head(int(words[at + 1]), words[at + 3])
    except (ValueError, IndexError) as error:
        raise LedgerError("a head reads: entry NUMBER sha256 HASH, as syslog has it") from error

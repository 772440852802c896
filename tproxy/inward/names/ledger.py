"""The file that keeps who proved what, and whose a name is, across restarts."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from base64 import b32encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2s
from pathlib import Path
from typing import Any

from tproxy.errors import TproxyError
from tproxy.inward.names.claims import Claim, Holder, Ledger

DIRECTORY = "/var/lib/tproxy-names"
FILE = "ledger.json"
PROOF_KEY = "proof.key"

VERSION = 1


class LedgerError(TproxyError):
    """The ledger cannot be read or written: nothing is known, so nothing changes."""


def directory() -> Path:
    """Return the directory of the ledger."""
    return Path(os.environ.get("TPROXY_NAMES_STATE") or DIRECTORY)


def load(folder: Path) -> Ledger:
    """Return the ledger; an empty one if there is none. Raises LedgerError for one that cannot be read."""
    file = folder / FILE
    try:
        said = json.loads(file.read_text())
        if said["version"] != VERSION:
            raise LedgerError(f"{file}: version {said['version']!a} is of another release")
        return Ledger(
            {(each.pop("domain"), each.pop("owner")): Claim(**each) for each in said["claims"]},
            {each.pop("name"): Holder(**each) for each in said["names"]},
        )
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise LedgerError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise LedgerError(
            f"{file} is damaged: restore it, or remove it and have all owners proved anew"
        ) from None


def save(folder: Path, ledger: Ledger) -> None:
    """Write the ledger, all of it or nothing. Raises LedgerError."""
    said: dict[str, Any] = {
        "version": VERSION,
        "claims": [
            {"domain": domain, "owner": owner, **claim._asdict()}
            for (domain, owner), claim in sorted(ledger.claims.items())
        ],
        "names": [{"name": name, **holder._asdict()} for name, holder in sorted(ledger.holders.items())],
    }
    _write(folder / FILE, json.dumps(said, indent=1) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the ledger meanwhile. Raises LedgerError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def token(folder: Path, owner: str) -> str:
    """Return an owner's token: 26 letters and digits, which follow from the owner and the proof key.

    Gateways that share names need the same key. It is made when it is missing. Raises LedgerError.
    """
    file = folder / PROOF_KEY
    try:
        if not file.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(file, secrets.token_hex(32) + "\n")
        key = file.read_text().strip()
    except OSError as error:
        raise LedgerError(f"{file}: {error.strerror}") from None
    if len(key) < 32:
        raise LedgerError(f"{file} has no key of 32 characters or more")
    digest = blake2s(owner.encode(), key=key.encode()[:32], digest_size=16).digest()
    return b32encode(digest).decode().rstrip("=").lower()


def _write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        new.rename(file)
    except OSError as error:
        raise LedgerError(f"{file}: {error.strerror}") from None

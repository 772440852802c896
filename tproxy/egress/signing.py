"""Signatures by minisign, the program of Debian: for bundles, and for heads of the ledger.

A key pair is two files, NAME.key (mode 0600, without a password, since a timer signs) and NAME.pub. What
people compare is a fingerprint: SHA-256 of the public key. minisign(1) describes the formats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tproxy.errors import TproxyError

# The names of the two keys of a node.
LEDGER, BUNDLE = "ledger", "bundle"


class SigningError(TproxyError):
    """A signature is wrong, or cannot be made."""


class KeyPair:
    """The two files of a key. ``create`` makes them unless they are there."""

    def __init__(self, directory: Path, name: str) -> None:
        self.secret, self.public = directory / f"{name}.key", directory / f"{name}.pub"

    def create(self) -> None:
        if self.secret.exists() and self.public.exists():
            return
        self.secret.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            _run("-G", "-W", "-f", "-p", str(self.public), "-s", str(self.secret))
        finally:
            os.umask(before)
        self.public.chmod(0o644)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public.read_text())

    def sign(self, content: bytes) -> str:
        """Return the text of a signature. Raises SigningError."""
        with tempfile.TemporaryDirectory() as folder:
            file, signature = Path(folder, "content"), Path(folder, "signature")
            file.write_bytes(content)
            _run("-S", "-s", str(self.secret), "-m", str(file), "-x", str(signature))
            return signature.read_text()


def verify(content: bytes, signature: str, public: str) -> None:
    """Raise SigningError unless this key signed the content."""
    with tempfile.TemporaryDirectory() as folder:
        file, written, key = (Path(folder, name) for name in ("content", "signature", "key"))
        file.write_bytes(content)
        written.write_text(signature)
        key.write_text(public)
        _run("-V", "-q", "-m", str(file), "-x", str(written), "-p", str(key))


def fingerprint(public: str) -> str:
    """Return the SHA-256 of a public key, whose file has a comment line and one line in base64."""
    try:
        key = base64.b64decode(public.split("\n")[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise SigningError("this is no public key of minisign") from error
    return hashlib.sha256(key).hexdigest()


def _run(*arguments: str) -> None:
    program = shutil.which("minisign")
    if program is None:
        raise SigningError("minisign is not installed: apt install minisign")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, input="")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SigningError(f"minisign: {lines[-1] if lines else 'failed without a word'}")

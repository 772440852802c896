"""Keys that sign documents: Ed25519 (RFC 8032).

A secret key is a file in PEM, mode 0600. A public key is one line, ``ed25519 BASE64 comment``. A file of keys
that a host trusts has a line for each, so that a new key can be trusted before the old one goes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tproxy.config.services import place
from tproxy.errors import TproxyError, quoted

KIND = "ed25519"


class KeyProblem(TproxyError):
    """A key cannot be read, or is none."""


class PublicKey:
    """A key by which signatures are verified. ``name`` is short, and tells it from others."""

    def __init__(self, raw: bytes) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(raw)
        self.raw = raw
        self.name = hashlib.sha256(raw).hexdigest()[:16]

    def verifies(self, signature: bytes, content: bytes) -> bool:
        try:
            self._key.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    def line(self, comment: str) -> str:
        """The key as a file of trusted keys has it."""
        return f"{KIND} {base64.b64encode(self.raw).decode()} {comment}"


class SecretKey:
    """A key that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def sign(self, content: bytes) -> bytes:
        return self._key.sign(content)


def create(path: Path, comment: str) -> SecretKey:
    """Make a secret key in this file, and its public key beside it, in ``path.pub``. Raises KeyProblem."""
    key = Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made = SecretKey(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(key.private_bytes(encoding, form, serialization.NoEncryption()))
        path.with_name(f"{path.name}.pub").write_text(f"{made.public.line(comment)}\n")
    except OSError as error:
        raise KeyProblem(f"{place(str(path))}: {error.strerror}") from error
    return made


def secret(path: Path) -> SecretKey:
    """Read a secret key. Raises KeyProblem."""
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyProblem(f"{place(str(path))}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise KeyProblem(f"{place(str(path))}: this is no secret key in PEM") from error
    if not isinstance(found, Ed25519PrivateKey):
        raise KeyProblem(f"{place(str(path))}: this key is not of the kind {KIND}")
    return SecretKey(found)


def trusted(path: Path) -> list[PublicKey]:
    """Read a file of public keys, a line each, with comments after #. Raises KeyProblem, also for no key."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise KeyProblem(f"{place(str(path))}: {reason}") from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if words[0] != KIND:
                raise ValueError
            found.append(PublicKey(base64.b64decode(words[1], validate=True)))
        except (ValueError, IndexError, binascii.Error):
            raise KeyProblem(
                f"{place(str(path), number)}: {quoted(line)} is no public key: {KIND} BASE64"
            ) from None
    if not found:
        raise KeyProblem(f"{place(str(path))}: there is no public key in it")
    return found

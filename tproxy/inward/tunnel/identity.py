"""A node's own files: its key, which it makes itself, and its certificate.

Needs the extra ``inward`` (asyncssh).
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import asyncssh

from tproxy.errors import ProcessError
from tproxy.inward.tunnel.authority import BACKDATED

DIRECTORY = "/var/lib/tproxy-tunnel-node"
KEY, CERTIFICATE, OPERATORS = "key", "key-cert.pub", "operators.pub"


class Identity:
    """The files in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> asyncssh.SSHKey:
        """Return the key, which is made where there is none. Raises ProcessError."""
        path = self.directory / KEY
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                key = asyncssh.generate_private_key("ssh-ed25519")
                self.write(KEY, key.export_private_key().decode())
                self.write(f"{KEY}.pub", key.export_public_key().decode())
            return asyncssh.read_private_key(path)
        except (OSError, asyncssh.KeyImportError) as error:
            raise ProcessError(f"cannot use {path}: {error}") from None

    def certificate(self) -> asyncssh.SSHCertificate | None:
        """Return the certificate; None where there is none."""
        try:
            return asyncssh.read_certificate(self.directory / CERTIFICATE)
        except (OSError, asyncssh.KeyImportError):
            return None

    def forget_certificate(self) -> None:
        (self.directory / CERTIFICATE).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a file at once. Raises OSError."""
        new = self.directory / f".{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        new.rename(self.directory / name)


def remaining(certificate: asyncssh.SSHCertificate | None) -> tuple[float, float]:
    """Return for how many seconds a certificate is valid, and for how many it was made."""
    until = getattr(certificate, "_valid_before", 0)
    since = getattr(certificate, "_valid_after", 0)
    return until - time.time(), until - since - BACKDATED


def host_keys(pattern: str) -> list[str]:
    """Return the public keys in files whose paths fit a pattern, without comments."""
    found = []
    for path in sorted(glob.glob(pattern)):
        try:
            words = Path(path).read_text().split()
        except OSError:
            continue
        if len(words) >= 2:
            found.append(" ".join(words[:2]))
    return found

"""The key with which this site signs its sealed Debian suites. It can rotate: for a while both keys sign.

apt accepts a Release file if one of its signatures is by a key that it knows, so clients have the time of a
rotation to get the new key.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tproxy.errors import TproxyError


class SiteKey:
    """The keys in a GnuPG directory. All of them sign."""

    def __init__(self, root: Path) -> None:
        self.home, self.public = root / "site-key", root / "site-key.asc"

    def create(self) -> None:
        """Make the first key, unless there is one."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.keys():
            self._generate()

    def rotate(self) -> None:
        """Make a further key. From now on the old one and the new one sign."""
        self.create()
        self._generate()

    def finish(self) -> None:
        """Remove all keys but the newest."""
        for old in self.keys()[:-1]:
            self._gpg("--delete-secret-and-public-key", old)
        self._export()

    def keys(self) -> list[str]:
        """Return the fingerprints of all keys, the oldest first."""
        lines = self._gpg("--list-secret-keys", "--with-colons").decode().splitlines()
        return [line.split(":")[9] for line in lines if line.startswith("fpr:")]

    def clear_sign(self, content: bytes) -> bytes:
        """Return an InRelease file for this Release file."""
        return self._gpg(*self._signers(), "--clear-sign", data=content)

    def detached(self, content: bytes) -> bytes:
        """Return a Release.gpg file for this Release file."""
        return self._gpg(*self._signers(), "--armor", "--detach-sign", data=content)

    def _signers(self) -> list[str]:
        return [f"--local-user={key}" for key in self.keys()]

    def _generate(self) -> None:
        self._gpg("--passphrase", "", "--quick-gen-key", "tproxy egress site key", "ed25519", "sign", "never")
        self._export()

    def _export(self) -> None:
        self.public.write_bytes(self._gpg("--armor", "--export"))

    def _gpg(self, *arguments: str, data: bytes = b"") -> bytes:
        # gpg's agent makes a socket in its directory, whose path may have 107 bytes (unix(7)). Through a link
        # any directory will do. The agent of a link that is gone is of no use, so it ends with the call.
        with tempfile.TemporaryDirectory(prefix="gpg.") as folder:
            home = Path(folder, "k")
            home.symlink_to(self.home.absolute())
            command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", "--no-tty"]
            command += ["--pinentry-mode", "loopback", "--digest-algo", "SHA256", *arguments]
            try:
                done = subprocess.run(command, input=data, capture_output=True, check=False)
                kill = ["gpgconf", "--homedir", str(home), "--kill", "all"]
                subprocess.run(kill, check=False, capture_output=True)
            except FileNotFoundError:
                raise TproxyError("gpg is not installed: apt install gpg") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise TproxyError(f"gpg: {lines[-1] if lines else 'failed without a word'}")
        return done.stdout

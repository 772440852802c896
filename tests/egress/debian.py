"""Debian packages, a signed repository of them, and an apt of a test's own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from tests.egress.upstream import Site

QUIET = {"capture_output": True, "check": True}


def gpg(home: Path, *arguments: str, data: bytes | None = None) -> bytes:
    command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", "--no-tty", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


class Repository:
    """A repository of aptly on a site, with one component "main". ``publish`` writes its indexes anew."""

    def __init__(self, site: Site, folder: Path, path: str = "/debian/") -> None:
        self.site, self.folder, self.path = site, folder, path
        self.debs: dict[str, bytes] = {}
        self.indexes: dict[str, bytes] = {}  # of the suite that was published last
        self.home = folder / "gpg"
        self.home.mkdir(parents=True, mode=0o700)
        key = ("--passphrase", "", "--pinentry-mode", "loopback")
        gpg(self.home, *key, "--quick-gen-key", "upstream", "ed25519", "sign", "never")
        self.key = folder / "upstream.asc"
        self.key.write_bytes(gpg(self.home, "--armor", "--export"))
        settings = {"rootDir": str(folder / "aptly"), "skipContentsPublishing": True}
        (folder / "aptly.conf").write_text(json.dumps(settings))

    @property
    def url(self) -> str:
        return self.site.url + self.path[1:]

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)

    def add(self, suite: str, package: str, version: str, depends: str = "", size: int = 100) -> bytes:
        """Build a package with dpkg-deb, for a suite."""
        tree = self.folder / f"{package}_{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = {
            "Package": package,
            "Version": version,
            "Architecture": "all",
            "Maintainer": "nobody <nobody@example.org>",
            "Description": "a package of a test",
        }
        if depends:
            control["Depends"] = depends
        text = "".join(f"{name}: {value}\n" for name, value in control.items())
        (tree / "DEBIAN" / "control").write_text(text)
        (tree / "usr/share" / package).mkdir(parents=True)
        content = hashlib.shake_256(f"{package}{version}".encode()).digest(size)
        (tree / "usr/share" / package / "data").write_bytes(content)
        path = self.folder / "debs" / suite / f"{package}_{version}_all.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", tree, path], capture_output=True, check=True
        )
        self.debs[f"{package}_{version}"] = path.read_bytes()
        return path.read_bytes()

    def publish(self, suite: str, by_hash: bool = True) -> None:
        """Let aptly write the indexes of a suite, and sign them. Offer them and the packages."""
        public = self.folder / "aptly/public"
        again = (public / "dists" / suite).exists()
        if not again:
            self._aptly("repo", "create", f"-distribution={suite}", "-component=main", suite)
        self._aptly("repo", "add", suite, str(self.folder / "debs" / suite))
        if again:
            self._aptly("publish", "update", "-batch", suite)
        else:
            options = ("-batch", "-architectures=amd64,all", f"-acquire-by-hash={str(by_hash).lower()}")
            self._aptly("publish", "repo", *options, suite)
        files = {path: path.read_bytes() for path in public.rglob("*") if path.is_file()}
        for path, content in files.items():
            self.site.put(f"{self.path}{path.relative_to(public)}", content)
        base = public / "dists" / suite
        self.indexes = {
            str(path.relative_to(base)): content for path, content in files.items() if base in path.parents
        }

    def _aptly(self, *words: str) -> None:
        environment = {**os.environ, "GNUPGHOME": str(self.home)}
        command = ["aptly", f"-config={self.folder / 'aptly.conf'}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr


class Apt:
    """An apt with a root directory of its own, which knows one repository and no installed package."""

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        for each in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
            (root / each).mkdir(parents=True)
        (root / "etc/sources.list").write_text(source + "\n")
        (root / "state/status").write_text("")
        (root / "etc/apt.conf").write_text(
            f'Dir "{root}";\nDir::Etc "{root}/etc";\nDir::State "{root}/state";\nDir::Cache "{root}/cache";\n'
            f'Dir::State::status "{root}/state/status";\nAPT::Architecture "amd64";\n'
            'APT::Sandbox::User "root";\nAcquire::Languages "none";\nAcquire::Retries "0";\n'
            'APT::Get::Assume-Yes "true";\n'
        )

    def run(self, *arguments: str, fails: bool = False) -> str:
        environment = {"APT_CONFIG": str(self.root / "etc/apt.conf"), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        done = subprocess.run(
            ["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        out = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, out
        return out

    def update(self, fails: bool = False) -> str:
        return self.run("update", "--error-on=any", fails=fails)

    def download(self, *packages: str, fails: bool = False) -> dict[str, bytes]:
        """Download packages with what they depend on, and return them by their files' names."""
        self.run("install", "--download-only", *packages, fails=fails)
        return {path.name: path.read_bytes() for path in (self.root / "cache/archives").glob("*.deb")}

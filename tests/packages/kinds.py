"""The kinds of packages: how each is built, installed, upgraded and removed, as docs/installation.md says."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from packages.requirements import Distribution
from tests.packages.machine import CHECKOUT, Machine


class Kind(ABC):
    """One kind of package."""

    # Packages of the distribution that have to be there before; what a Debian package needs, apt finds
    # itself.
    needs: ClassVar[tuple[str, ...]]
    # Whether the package brings units; for the others somebody copies them.
    has_units: ClassVar[bool]

    @abstractmethod
    def build(self, source: Path, distribution: Distribution, output: Path) -> None:
        """Build the package of a source tree; every file in ``output`` will be in the machine."""

    @abstractmethod
    def install(self, machine: Machine, files: str) -> None:
        """Install the package, of which the files are in a folder of the machine."""

    @abstractmethod
    def upgrade(self, machine: Machine, files: str) -> None:
        """Install this version over the one that runs."""

    @abstractmethod
    def remove(self, machine: Machine) -> None:
        """Remove the package, its configuration and its logs."""


class Deb(Kind):
    needs = ()
    has_units = True

    def build(self, source: Path, distribution: Distribution, output: Path) -> None:
        _build("-m", "packages.deb", distribution.codename, "--source", source, "--output", output)

    def install(self, machine: Machine, files: str) -> None:
        (file,) = machine.sh(f"ls {files}/*.deb").split()
        machine.install(file)

    def upgrade(self, machine: Machine, files: str) -> None:
        self.install(machine, files)

    def remove(self, machine: Machine) -> None:
        machine.run("apt-get", "-q", "-y", "purge", "tproxy")


class Zipapp(Kind):
    """The file in a tree that `onehost sync` has copied, called by the name that OpenNebula's drivers use."""

    needs = ("python3", "nftables", "iproute2")
    has_units = False

    def build(self, source: Path, distribution: Distribution, output: Path) -> None:
        _build("-m", "packages.zipapp", "--source", source, "--output", output)

    def install(self, machine: Machine, files: str) -> None:
        self._sync(machine, files)
        machine.sh("ln -s /var/tmp/one/vnm/tproxy /usr/local/bin/tproxy")

    def upgrade(self, machine: Machine, files: str) -> None:
        self._sync(machine, files)
        machine.sh("tproxy restart")

    def remove(self, machine: Machine) -> None:
        machine.sh("/var/lib/tproxy/zipapp/current/bin/remove-tproxy")
        machine.sh(
            "rm -rf /var/lib/tproxy /etc/tproxy /var/log/one_tproxy*.log /var/tmp/one /usr/local/bin/tproxy"
        )

    def _sync(self, machine: Machine, files: str) -> None:
        """Do what is done on the front-end, and then what `onehost sync` does."""
        install = "install opennebula --remotes $remotes --drop-in --command /var/tmp/one/tproxy.pyz"
        machine.sh(
            "remotes=$(mktemp -d); mkdir -p $remotes/vnm /var/tmp/one;"
            f"cp {files}/*.pyz $remotes/tproxy.pyz; $remotes/tproxy.pyz {install};"
            "cp -r $remotes/. /var/tmp/one; rm -r $remotes"
        )


class Wheel(Kind):
    """The wheel in a virtual environment; what it needs comes from PyPI."""

    needs = ("python3-venv", "nftables", "iproute2")
    has_units = False

    def build(self, source: Path, distribution: Distribution, output: Path) -> None:
        _build("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", output, source)
        # The machine has no network, so it finds PyPI's wheels in a folder.
        (wheel,) = output.iterdir()
        target = ["--only-binary=:all:", "--python-version", distribution.python]
        _build("-m", "pip", "download", "--quiet", "--dest", output, *target, wheel)

    def install(self, machine: Machine, files: str) -> None:
        machine.sh("python3 -m venv /opt/tproxy; ln -s /opt/tproxy/bin/tproxy /usr/local/bin/tproxy")
        self._pip(machine, files)

    def upgrade(self, machine: Machine, files: str) -> None:
        self._pip(machine, files)
        machine.sh("tproxy restart")

    def remove(self, machine: Machine) -> None:
        machine.sh("/opt/tproxy/bin/remove-tproxy")
        machine.sh("rm -rf /opt/tproxy /etc/tproxy /var/log/one_tproxy*.log /usr/local/bin/tproxy")

    def _pip(self, machine: Machine, files: str) -> None:
        pip = "/opt/tproxy/bin/pip --no-cache-dir --quiet install --upgrade --no-index"
        machine.sh(f"{pip} --find-links {files} one-tproxy")


KINDS: dict[str, Kind] = {"deb": Deb(), "zipapp": Zipapp(), "wheel": Wheel()}


def _build(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=CHECKOUT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

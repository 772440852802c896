"""Machines that run a distribution from a clean root, with systemd as process 1 and no network of others.

A clean root is what debootstrap makes of a distribution, with systemd and nothing else: .ci/setup makes it.
What packages need is downloaded into its archive of packages before a machine boots, and not installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.netns.waiting import eventually

CHECKOUT = Path(__file__).parents[2]
ROOTS = CHECKOUT / "build/packages/roots"
BOOT = Path(__file__).with_name("boot.sh")

# Nobody answers questions, and messages are in English.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "TPROXY_PATIENCE": os.environ.get("TPROXY_PATIENCE", "100"),
}


class Machine:
    """A booted machine. ``run`` runs a program in it as root."""

    def __init__(self, codename: str) -> None:
        self.codename = codename
        self._folder = Path(tempfile.mkdtemp(prefix=f"tproxy-{codename}-"))
        name = self._folder.name[-20:].replace("_", "-").strip("-")
        self._boot = subprocess.Popen(
            ["sh", BOOT, root(codename), self._folder, name],
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "console").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.pid = 0  # of its process 1, as seen from here

    def wait(self) -> None:
        """Return when the machine is up."""
        for _ in eventually():
            assert self._boot.poll() is None, (self._folder / "console").read_text(errors="replace")
            self.pid = self.pid or self._find()
            state = self.run("systemctl", "is-system-running", check=False).stdout if self.pid else ""
            if state in ("running\n", "degraded\n"):
                return

    def close(self) -> None:
        """End the machine and all its processes, and forget what it wrote."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        else:
            self._boot.terminate()
        self._boot.wait()
        shutil.rmtree(self._folder)

    def run(
        self, *argv: str | Path, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine; with ``check``, fail the test when it fails."""
        done = subprocess.run(
            [*self._enter(), *argv],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            env=ENVIRONMENT | environment,
        )
        assert not check or done.returncode == 0, (
            f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        return done

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script in the machine; return what it printed on stdout."""
        return self.run("sh", "-ec", script, **options).stdout

    def path(self, inside: str) -> Path:
        """Return the path outside of a file of the machine."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def put(self, folder: Path) -> str:
        """Copy a folder into the machine; return its path there."""
        target = f"/root/{folder.name}"
        shutil.copytree(folder, self.path(target))
        return target

    def popen(self, *argv: str | Path, netns: str | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a program of this host in the machine's network, or in a namespace of the machine."""
        net = self.path(f"/run/netns/{netns}") if netns else f"/proc/{self.pid}/ns/net"
        return subprocess.Popen(["nsenter", f"--net={net}", *argv], text=True, **options)

    def install(self, *packages: str) -> None:
        """Install packages: paths of files in the machine, or names of what was downloaded before."""
        self.run("apt-get", "-q", "-y", "--no-install-recommends", "--allow-downgrades", "install", *packages)

    def depends(self, files: str) -> list[str]:
        """Return the packages of the distribution that a Debian package in a folder needs."""
        found = self.sh(f"dpkg-deb -f {files}/*.deb Depends")
        return [each.split()[0] for each in found.split(",")]

    def files(self) -> dict[str, str]:
        """Return all files of the machine's disk, each with its type, its mode and where a link leads."""
        found = self.sh(r"find / -xdev -printf '%p\t%y %m %l\n'")
        return dict(line.split("\t", 1) for line in found.splitlines())

    def _enter(self) -> list[str]:
        namespaces = ["--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts"]
        return ["nsenter", f"--target={self.pid}", *namespaces, "--root", "--wd"]

    def _find(self) -> int:
        with suppress(psutil.Error):  # a process ends meanwhile
            for process in psutil.Process(self._boot.pid).children(recursive=True):
                if process.exe().endswith("/lib/systemd/systemd"):
                    return process.pid
        return 0


class Guest:
    """A guest on a bridge of the machine: a network namespace, from which programs of this host ask."""

    def __init__(self, machine: Machine, name: str, bridge: str) -> None:
        self._machine, self._name = machine, name
        machine.sh(
            f"ip netns add {name}; ip link add {name}0 type veth peer name eth0 netns {name};"
            f"ip link set {name}0 master {bridge} up; ip -n {name} link set lo up;"
            f"ip -n {name} address add 10.0.0.5/24 dev eth0; ip -n {name} link set eth0 up;"
            f"ip -n {name} route add 169.254.16.9 dev eth0"
        )

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return self._machine.popen(*argv, netns=self._name, **options)


def root(codename: str) -> Path:
    """Return the clean root of a distribution; skip the test, in CI fail it, where there is none."""
    found = ROOTS / codename
    if not (found / "usr/bin/apt-get").exists():
        reason = f"no clean root of {codename}: make test-packages makes it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def download(codename: str, *packages: str | Path) -> None:
    """Download packages and what they need into the clean root's archive. A path is a file of this host."""
    with _exclusive(codename) as found:
        files = [each for each in packages if isinstance(each, Path)]
        copies = [Path(shutil.copy(each, found / "root")) for each in files]
        names = [each for each in packages if isinstance(each, str)] + [
            f"/root/{each.name}" for each in files
        ]
        command = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", *names]
        shutil.copy("/etc/resolv.conf", found / "etc/resolv.conf")
        done = subprocess.run(
            ["chroot", found, *command], env=ENVIRONMENT, check=False, capture_output=True, text=True
        )
        for copy in copies:
            copy.unlink()
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def booted(codename: str) -> Iterator[Machine]:
    machine = Machine(codename)
    try:
        machine.wait()
        yield machine
    finally:
        machine.close()


@contextmanager
def _exclusive(codename: str) -> Iterator[Path]:
    """Let one process at a time change a clean root."""
    found = root(codename)
    with (ROOTS / f"{codename}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield found

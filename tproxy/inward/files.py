"""The files of the gateway, in a directory of /run: each appears whole, and for root alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tproxy.inward.compile import ADMIN, CERTIFICATES
from tproxy.inward.runtime import Runtime
from tproxy.kernel import netns

ROOT = "/run/tproxy-gateway"

# Copies of the certificates that HAProxy has: whether one has changed is told by them.
_COPIES = "certificates"


def directory() -> Path:
    """Return the directory of this host's gateway."""
    return Path(ROOT) / str(netns.current().inode)


def admin() -> Runtime:
    """Return the admin socket of this host's gateway."""
    return Runtime(str(directory() / ADMIN))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the gateway: an operator, a timer and a follower may do so at once."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write files, each in the place of the one before."""
    for file, text in texts.items():
        new = folder / f"{file}.new"
        new.write_text(text)
        new.chmod(0o600)
        new.rename(folder / file)


def write_copies(folder: Path, certificates: dict[str, str]) -> None:
    """Remember the certificates that HAProxy has, by path."""
    copies = folder / _COPIES
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(mode=0o700)
    write(copies, {path.replace("/", "%"): text for path, text in certificates.items()})


def change_certificates(admin: Runtime, folder: Path, certificates: dict[str, str], listed: str) -> list[str]:
    """Have HAProxy use these certificates, by path, and no others; return what was done, in words.

    Raises ProcessError for one that cannot be used; those before it are in use.
    """
    in_list = str(folder / CERTIFICATES)
    before = (folder / CERTIFICATES).read_text().split()
    done = []
    for path, text in certificates.items():
        copy = folder / _COPIES / path.replace("/", "%")
        new = path not in before
        if new or not copy.exists() or copy.read_text() != text:
            admin.set_certificate(path, text, new=new, in_list=in_list)
            done.append(f"certificate {path}")
    for path in before:
        if path not in certificates:
            admin.drop_certificate(path, in_list)
            done.append(f"certificate {path} is gone")
    if done:
        write(folder, {CERTIFICATES: listed})
        write_copies(folder, certificates)
    return done


def free_port() -> int:
    """Return a port of loopback that nobody has."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])

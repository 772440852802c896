"""Puts tproxy's files into a platform's folders, and takes them out again without a trace.

Each file of ours holds MARK in its first lines, and each folder that was made for one holds a file called
FOLDER_MARK. So a file or folder of the platform's is never overwritten or removed, whatever happened to it
in the meantime, and there is no list of installed files that could be wrong. Where a file of ours replaces
one of the platform's, the platform's file is kept beside it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tproxy.errors import TproxyError

MARK = "Installed by tproxy"
MARKED_BYTES = 4096
FOLDER_MARK = ".made-by-tproxy"
KEPT = ".before-tproxy"


class Piece(NamedTuple):
    """A file to install. With ``replaces``, a file of the platform's at ``path`` is kept beside ours."""

    path: Path
    text: str
    mode: int = 0o755
    replaces: bool = False


def template(name: str, **values: str) -> str:
    """Return the text of a file of drivers/, such as ``opennebula/hook``, with each ``@NAME@`` replaced."""
    from importlib import resources  # slow to import, and the events of platforms import this module too

    text = (resources.files("tproxy") / "drivers" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def hook(name: str, *, strict: bool) -> str:
    """Return the text of a hook of drivers/ that calls ``tproxy event``; a strict one fails when it does."""
    # The hook runs the Python that installs it, because tproxy is installed there.
    return template(name, PYTHON=shlex.quote(sys.executable), STRICT="yes" if strict else "no")


def is_ours(path: Path) -> bool:
    """Return whether tproxy installed the file. Raises TproxyError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(MARKED_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise TproxyError(f"cannot read {path}: {error.strerror}") from None


def put(pieces: Sequence[Piece]) -> list[Path]:
    """Install all pieces; return the paths that were missing or different.

    Raises TproxyError, and has then changed nothing, when a file that is not ours is in the way.
    """
    with _exclusive():
        for piece in pieces:
            assert MARK in piece.text[:MARKED_BYTES], piece.path
            if os.path.lexists(piece.path) and not piece.replaces and not is_ours(piece.path):
                raise TproxyError(f"{piece.path} is not ours and would be lost: move it away first")
        try:
            return [piece.path for piece in pieces if _put(piece)]
        except OSError as error:
            raise TproxyError(f"cannot write {error.filename}: {error.strerror}") from None


def take_out(paths: Sequence[Path]) -> list[Path]:
    """Remove the files that are ours, and the folders made for them; return the paths removed."""
    with _exclusive():
        try:
            removed = [path for path in paths if _take_out(path)]
            for folder in {path.parent for path in paths}:
                _remove_if_made(folder)
        except OSError as error:
            raise TproxyError(f"cannot remove {error.filename}: {error.strerror}") from None
    return removed


@contextmanager
def _exclusive() -> Iterator[None]:
    """Let one process install or uninstall at a time.

    Two at once would write the same draft files, and could keep a file of ours as the platform's. The kernel
    releases the lock when its holder ends, flock(2). The locked file is the Python interpreter: root and the
    platform's user can both read it, wherever our own files are.
    """
    fd = os.open(sys.executable, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _put(piece: Piece) -> bool:
    path, data = piece.path, piece.text.encode()
    ours = is_ours(path)
    if ours and path.read_bytes() == data and path.stat().st_mode & 0o7777 == piece.mode:
        return False
    _make_folder(path.parent)
    # Written under another name first: the platform may run the file at this very moment.
    new = _draft(path)
    try:
        new.write_bytes(data)
        new.chmod(piece.mode)
        _give(new)
        # The platform's file is moved last: a full disk must not cost it.
        if not ours and os.path.lexists(path):
            path.replace(_kept(path))
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        error.filename = error.filename or new  # an error of write(2) names no file
        raise
    return True


def _take_out(path: Path) -> bool:
    ours = is_ours(path)
    _draft(path).unlink(missing_ok=True)  # libvirt would run a complete draft as a hook
    if os.path.lexists(path) and not ours:
        # The platform has installed a newer file in our place, so the file that we kept is obsolete.
        _kept(path).unlink(missing_ok=True)
        return False
    # The file is ours, or missing: somebody removed it, or an installation was interrupted.
    path.unlink(missing_ok=True)
    if os.path.lexists(_kept(path)):
        _kept(path).replace(path)
    return ours


def _remove_if_made(folder: Path) -> None:
    """Remove a folder that was made for our files, unless it holds other files by now."""
    mark = folder / FOLDER_MARK
    if not mark.exists():
        return
    others = [each for each in folder.iterdir() if each != mark]
    # A folder below that was made for us is removed later, and then this one.
    if any((each / FOLDER_MARK).exists() if each.is_dir() else is_ours(each) for each in others):
        return
    mark.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
        _remove_if_made(folder.parent)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _kept(path: Path) -> Path:
    return path.with_name(path.name + KEPT)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(0o755)
    folder.chmod(0o755)  # mkdir(2) applies the umask
    mark = folder / FOLDER_MARK
    mark.write_text(f"{MARK}, which removes this folder when nothing else is left in it.\n")
    for path in (folder, mark):
        _give(path)


def _give(path: Path) -> None:
    """Give a file to the owner of its folder: OpenNebula copies to its hosts only what its user can read."""
    owner = path.parent.stat()
    if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)

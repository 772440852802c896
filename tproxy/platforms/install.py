"""Files of ours in a platform's folders: put there, and taken out again without a trace.

What is ours says so: each file holds MARK in its first lines, each folder that was made for one a file
FOLDER_MARK. So nothing of a platform's is overwritten or removed, whatever became of it meanwhile, and no
list is kept that could be wrong. A file of the platform's that one of ours takes the place of is kept
beside it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tproxy.errors import TproxyError

MARK = "Installed by tproxy"
MARKED_BYTES = 4096
FOLDER_MARK = ".made-by-tproxy"
KEPT = ".before-tproxy"


class Piece(NamedTuple):
    """A file to have. ``replaces``: a file of that name is the platform's, and is kept beside ours."""

    path: Path
    text: str
    mode: int = 0o755
    replaces: bool = False


def template(name: str, **values: str) -> str:
    """A file of drivers/, such as ``opennebula/hook``, with its ``@NAME@`` filled in."""
    text = (resources.files("tproxy") / "drivers" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def is_ours(path: Path) -> bool:
    """Whether we put that file there."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(MARKED_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise TproxyError(f"cannot read {path}: {error.strerror}") from None


def put(pieces: Sequence[Piece]) -> list[Path]:
    """Have all pieces in place; returns those that were not. Raises TproxyError before any change."""
    with _alone():
        for piece in pieces:
            assert MARK in piece.text[:MARKED_BYTES], piece.path
            if os.path.lexists(piece.path) and not piece.replaces and not is_ours(piece.path):
                raise TproxyError(f"{piece.path} is not ours: remove it, or it would be lost")
        try:
            return [piece.path for piece in pieces if _put(piece)]
        except OSError as error:
            raise TproxyError(f"cannot write {error.filename}: {error.strerror}") from None


def take_out(paths: Sequence[Path]) -> list[Path]:
    """Remove those of the files that are ours, with the folders made for them; returns those removed."""
    with _alone():
        try:
            removed = [path for path in paths if _take_out(path)]
            for folder in {path.parent for path in paths}:
                _leave(folder)
        except OSError as error:
            raise TproxyError(f"cannot remove {error.filename}: {error.strerror}") from None
    return removed


@contextmanager
def _alone() -> Iterator[None]:
    """One at a time: two would write the same drafts, and keep ours for the platform's.

    The lock goes with its holder, flock(2). On Python itself: whoever installs, as root or as the platform's
    user, can read that, wherever our own files are.
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
    # Complete under another name first: a platform may run it at this very moment.
    new = _draft(path)
    try:
        new.write_bytes(data)
        new.chmod(piece.mode)
        _give(new)
        # The platform's own goes last: a full disk must not cost it.
        if not ours and os.path.lexists(path):
            path.replace(_kept(path))
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        error.filename = error.filename or new  # write(2) does not say
        raise
    return True


def _take_out(path: Path) -> bool:
    ours = is_ours(path)
    _draft(path).unlink(missing_ok=True)  # complete, it is a hook like any other to libvirt
    if os.path.lexists(path) and not ours:
        # The platform has put a newer one in our place: what we kept is of no use any more.
        _kept(path).unlink(missing_ok=True)
        return False
    # Ours, or nothing: somebody removed it, or an installation was cut off half-way.
    path.unlink(missing_ok=True)
    if os.path.lexists(_kept(path)):
        _kept(path).replace(path)
    return ours


def _leave(folder: Path) -> None:
    """Remove a folder that was made for our files; with others in it by now, it is the platform's."""
    mark = folder / FOLDER_MARK
    if not mark.exists() or any(
        is_ours(each) for each in folder.iterdir() if each.is_file() and each != mark
    ):
        return
    mark.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
        _leave(folder.parent)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _kept(path: Path) -> Path:
    return path.with_name(path.name + KEPT)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(0o755)
    folder.chmod(0o755)  # whatever the umask
    mark = folder / FOLDER_MARK
    mark.write_text(f"{MARK}, which removes this folder when nothing else is left in it.\n")
    for path in (folder, mark):
        _give(path)


def _give(path: Path) -> None:
    """To the owner of the folder that it is in: OpenNebula spreads only what its user can read."""
    owner = path.parent.stat()
    if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)

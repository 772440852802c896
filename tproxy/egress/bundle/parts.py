"""Files in parts: FILE.001, FILE.002 …, which together are FILE. ``cat FILE.*`` makes it whole."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from tproxy.egress.bundle.manifest import BundleError

LARGEST = (4 << 30) - 1  # bytes of a file on FAT32


def of(path: Path) -> list[Path]:
    """Return the parts of a file, or the file itself. Raises BundleError."""
    if path.suffix[1:].isdecimal():
        path = path.with_suffix("")
    if path.exists():
        return [path]
    found: list[Path] = []
    while (part := path.with_name(f"{path.name}.{len(found) + 1:03d}")).exists():
        found.append(part)
    if not found:
        raise BundleError(f"{path} is not there, nor is {path.name}.001")
    return found


class Reader(io.RawIOBase):
    """Reads parts as one file, from any place in it."""

    def __init__(self, paths: list[Path]) -> None:
        try:
            self._files = [path.open("rb", buffering=0) for path in paths]
        except OSError as error:
            raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
        self._ends = list(accumulate(os.fstat(file.fileno()).st_size for file in self._files))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ends[-1]}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # All of it, also over the end of a part: tarfile takes less for the end of the file.
        view, begun = memoryview(buffer), self._at
        while view and (number := bisect_right(self._ends, self._at)) < len(self._files):
            start = self._ends[number - 1] if number else 0
            count = os.preadv(self._files[number].fileno(), [view], self._at - start)
            if not count:
                break  # somebody has made it shorter
            self._at += count
            view = view[count:]
        return self._at - begun

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


class Writer(io.RawIOBase):
    """Writes a file, or its parts when ``size`` is given. Nothing has its name before ``commit``."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._path, self._size = path, size
        self._written: list[Path] = []
        self._left = 0
        self._at = 0
        self._file: io.FileIO | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: memoryview | bytes) -> int:  # type: ignore[override]
        view = memoryview(data)
        while view:
            if self._file is None or not self._left:
                self._next()
            assert self._file is not None
            count = self._file.write(view[: self._left])
            assert count
            self._left -= count
            view = view[count:]
        self._at += len(data)
        return len(data)

    def _next(self) -> None:
        self._end()
        self._left = self._size or 1 << 62
        number = f".{len(self._written) + 1:03d}" if self._size else ""
        part = self._path.with_name(f"{self._path.name}{number}.partial")
        self._file = part.open("wb", buffering=0)
        self._written.append(part)

    def _end(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def commit(self) -> list[Path]:
        """Give the files their names, and return them. Older files of these names are replaced."""
        self._end()
        named = [part.with_suffix("") for part in self._written]
        for part, name in zip(self._written, named, strict=True):
            os.replace(part, name)
        self._written = []
        # Parts of an earlier, longer bundle would be read as the end of this one.
        for old in self._path.parent.glob(f"{self._path.name}.[0-9][0-9][0-9]"):
            if old not in named:
                old.unlink()
        if self._size:
            self._path.unlink(missing_ok=True)
        return named

    def close(self) -> None:
        if not self.closed:
            self._end()
            for part in self._written:
                part.unlink(missing_ok=True)
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Tells which names come and go in a directory (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80  # <sys/inotify.h>
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")  # struct inotify_event, without the name


class Watch:
    """Watches one directory. ``fileno`` is readable when names have come or gone. Raises OSError."""

    def __init__(self, directory: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.ended = False  # whether the directory is gone
        self._fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error()
        mask = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            error = _error()
            os.close(self._fd)
            raise error

    def fileno(self) -> int:
        return self._fd

    def read(self) -> set[str]:
        """Return the names that have come or gone since the last time; with "" when some were lost."""
        names: set[str] = set()
        try:
            data = os.read(self._fd, 64 * 1024)
        except BlockingIOError:
            return names
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            end = _EVENT.size + length
            names.add(
                "" if mask & (_OVERFLOW | _IGNORED) else os.fsdecode(data[_EVENT.size : end].rstrip(b"\0"))
            )
            self.ended = self.ended or bool(mask & _IGNORED)
            data = data[end:]
        return names

    def close(self) -> None:
        os.close(self._fd)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))

"""Tells cheaply whether a bridge's namespace is still the one it was, with the sysctls it had.

The kernel announces neither. Opening a sysctl file costs thirty times as much as reading it once more,
so the files stay open; they do not keep the namespace alive, and reading fails when it is gone.
"""

from __future__ import annotations

import os
from contextlib import suppress

from tproxy.kernel import links, netns

_LONGEST = 64  # bytes; each of the values is one number


class Probe:
    """Of a namespace as it is now; raises KernelError when there is none. ``close`` it."""

    def __init__(self, namespace: str, sysctls: list[str]) -> None:
        self._path = netns.path(namespace)
        self._files: list[int] = []
        try:
            with netns.inside(namespace):
                self._identity = netns.current()
                for path in sysctls:
                    with suppress(FileNotFoundError):  # the kernel lacks it
                        self._files.append(os.open(f"{links.SYSCTL}/{path}", os.O_RDONLY | os.O_CLOEXEC))
            self._values = self._read()
        except BaseException:
            self.close()
            raise

    @property
    def changed(self) -> bool:
        try:
            status = os.stat(self._path)
            return (status.st_dev, status.st_ino) != self._identity or self._read() != self._values
        except OSError:
            return True

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def _read(self) -> list[bytes]:
        return [os.pread(file, _LONGEST, 0) for file in self._files]

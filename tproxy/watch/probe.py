"""A cheap test whether a bridge still has the same namespace, with the same sysctls.

The kernel announces neither change. Opening a sysctl file costs thirty times as much as reading it once
more, so the files stay open. They do not keep the namespace alive: reading fails when it is gone.
"""

from __future__ import annotations

import os
from contextlib import suppress

from tproxy.kernel import links, netns

_LONGEST = 64  # bytes; each value is one number


class Probe:
    """A namespace and its sysctls as they are now.

    ``sysctls`` are paths below /proc/sys. Raises KernelError when there is no such namespace. The owner
    calls ``close``.
    """

    def __init__(self, namespace: str, sysctls: list[str]) -> None:
        self._path = netns.path(namespace)
        self._files: list[int] = []
        try:
            with netns.inside(namespace):
                self._identity = netns.current()
                for path in sysctls:
                    with suppress(FileNotFoundError):  # this kernel does not have it
                        self._files.append(os.open(f"{links.SYSCTL}/{path}", os.O_RDONLY | os.O_CLOEXEC))
            self._values = self._read()
        except BaseException:
            self.close()
            raise

    @property
    def changed(self) -> bool:
        """Whether the namespace, or one of its sysctls, is not as it was."""
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

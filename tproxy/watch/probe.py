"""A cheap test whether a bridge still has the same namespace, sysctls and entries for our MAC.

The kernel announces no change of the first two, and those of entries only together with all that bridges
learn and what hosts answer to ARP. Opening a sysctl file costs thirty times as much as reading it once more,
so the files stay open. They do not keep the namespace alive: reading fails when it is gone.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from tproxy.kernel import links, netns
from tproxy.names import BridgeNames

_LONGEST = 64  # bytes; each value is one number


class Probe:
    """The namespace of a bridge, its sysctls, and the entries for our MAC at our port, as they are now.

    ``sysctls`` are paths below /proc/sys/net. Raises KernelError when there is no such namespace, OSError.
    The owner calls ``close``.
    """

    def __init__(self, names: BridgeNames, sysctls: list[str]) -> None:
        self._path = netns.path(names.namespace)
        self._bridge, self._port = names.bridge, socket.if_nametoindex(names.veth_bridge)
        self._files: list[int] = []
        try:
            self._fixed = links.fixed_vlans(self._port, names.bridge)
            with netns.inside(names.namespace):
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
        """Whether the namespace, one of its sysctls, or an entry for our MAC is not as it was."""
        try:
            status = os.stat(self._path)
            return (
                (status.st_dev, status.st_ino) != self._identity
                or self._read() != self._values
                or links.fixed_vlans(self._port, self._bridge) != self._fixed
            )
        except OSError:
            return True

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def _read(self) -> list[bytes]:
        return [os.pread(file, _LONGEST, 0) for file in self._files]

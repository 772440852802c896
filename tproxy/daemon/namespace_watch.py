"""Notices when a bridge's namespace is deleted, or made anew under the same name.

The relay and its listening sockets would keep a deleted namespace alive (network_namespaces(7)), with an
address that nobody can reach.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tproxy.kernel import netns
from tproxy.kernel.inotify import Watch
from tproxy.kernel.loop import READ, Loop
from tproxy.names import BridgeNames

log = logging.getLogger(__name__)

_PREFIX = BridgeNames("x").namespace.removesuffix("x")


class NamespaceWatch:
    """Calls ``changed`` with the bridge whose namespace may be another one, and None if it may be any."""

    def __init__(self, loop: Loop, changed: Callable[[str | None], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._watch: Watch | None = None

    def begin(self) -> None:
        """Watch from now on. Does nothing if that is so already, or nobody has made a namespace yet."""
        if self._watch is not None:
            return
        try:
            self._watch = Watch(netns.DIRECTORY)
        except FileNotFoundError:
            return
        except OSError as error:  # fs.inotify.max_user_instances: the next hook of a bridge looks, too
            log.warning("namespaces that are deleted are noticed late: %s", error.strerror)
            return
        self._loop.add(self._watch.fileno(), READ, self)

    def on_event(self, fd: int, mask: int) -> None:
        assert self._watch is not None
        names = self._watch.read()
        if self._watch.ended:  # the directory was removed; ``begin`` goes on with the next one
            self._loop.close_later(self._watch)
            self._watch = None
        for name in names:
            if not name:
                self._changed(None)
            elif name.startswith(_PREFIX):
                self._changed(name.removeprefix(_PREFIX))

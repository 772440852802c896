"""What is kept in advance: brings the store up to date with the list, one run at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tproxy.egress.gather.gathering import KEYRING, gather
from tproxy.egress.gather.lists import Item, Targets, check
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.store.store import Store
from tproxy.errors import TproxyError

# The exit code of a run that finds another one: EX_TEMPFAIL, sysexits.h(3head).
EXIT_BUSY = 75


class Busy(TproxyError):
    """Another update is running. The message names it."""


def add(store: Store, kind: str, name: str) -> bool:
    """Keep something in advance. Return False if it was kept already. Raises ListError."""
    return store.keep(*check(kind, name))


def remove(store: Store, kind: str, name: str) -> bool:
    return store.release(kind, name)


def update(
    settings: Settings,
    targets: Targets,
    keyring: str = KEYRING,
    progress: Callable[[str], None] = lambda line: None,
    seen: Callable[[int], None] = lambda size: None,
    only: tuple[str, str] | None = None,
) -> list[str]:
    """Fetch everything that is kept in advance, or one thing of it, and return what is missing.

    ``progress`` hears what begins, and ``seen`` the size of each file that is in the store. Raises Busy, and
    TproxyError for something that is not kept.
    """
    store = Store(settings.root, settings.quota)
    try:
        with alone(settings):
            items = [Item(*each) for each in store.kept() if only in (None, each)]
            if only and not items:
                raise TproxyError(f"{' '.join(only)!a} is not kept in advance")
            found = gather(settings, store, items, targets, keyring, progress, seen)
            hashes = {record.sha256 for record in found.records.values()}
            if only:
                store.pin(hashes | store.protected())
            elif not found.missing:
                # With something missing, what was pinned before stays pinned.
                store.pin(hashes)
            return found.missing
    finally:
        store.close()


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the lock of updates. Raises Busy, which names who holds it."""
    path = settings.root / "update.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another one"
        raise Busy(f"an update is running: {holder}") from None
    else:
        os.ftruncate(descriptor, 0)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()}, since {stamp}".encode(), 0)
        yield
    finally:
        os.close(descriptor)

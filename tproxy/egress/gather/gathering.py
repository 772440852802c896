"""Gathers a list: runs a private mirror, lets the engines fetch through it, and returns what they got."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tproxy.egress.gather import engines, metadata
from tproxy.egress.gather.lists import Item, Targets
from tproxy.egress.mirror.server import Listeners, Mirror
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.model import Artifact, Caller, Verdict
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

# Debian's own keys, which the package debian-archive-keyring brings.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass
class Gathered:
    """What was found for a list. ``missing`` has a line for each thing that was not."""

    records: dict[tuple[str, str, str], Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def gather(
    settings: Settings,
    store: Store,
    items: Sequence[Item],
    targets: Targets,
    keyring: str = KEYRING,
    progress: Callable[[str], None] = lambda line: None,
    seen: Callable[[int], None] = lambda size: None,
) -> Gathered:
    """Fetch what a list names into the store, in dmz mode from upstream. Runs a loop of its own.

    ``progress`` hears what begins, and ``seen`` the size of each file that is in the store.
    """
    found = Gathered()
    pins = {
        url: sha256 for each in items if each.kind == "file" for url, _, sha256 in [each.name.partition(" ")]
    }
    settings = replace(settings, files={**settings.files, **pins})
    asyncio.run(_gather(settings, store, items, targets, keyring, progress, seen, found))
    for record in metadata.beside(store, found.records.values()):
        found.records[record.key] = record
    return found


async def _gather(
    settings: Settings,
    store: Store,
    items: Sequence[Item],
    targets: Targets,
    keyring: str,
    progress: Callable[[str], None],
    seen: Callable[[int], None],
    found: Gathered,
) -> None:
    # The operator has put these on a list. The policy of networks is for guests.
    def judge(caller: Caller, artifact: Artifact, suites: object) -> Verdict:
        return Verdict(True, "list")

    async def record(event: object) -> None:
        """Write nothing: no guest gets what is gathered here."""

    mirror = Mirror(settings, store, judge, record)
    listeners = Listeners(mirror)

    def note(record: Record) -> None:
        if record.key not in found.records:
            seen(record.size)
        found.records[record.key] = record

    mirror.library.touched = note
    try:
        port = await listeners.for_clients("127.0.0.1", 0, lambda address: "list")
        url = f"http://127.0.0.1:{port}/"
        of = {kind: [item for item in items if item.kind == kind] for kind in dict(items)}
        jobs: dict[str, Callable[[list[Item]], list[str]]] = {
            "pypi": lambda some: engines.pypi(url, some, targets),
            "deb": lambda some: engines.deb(url, some, targets, list(settings.repositories), keyring),
            "oci": lambda some: engines.oci(url, some, targets),
            "galaxy": lambda some: engines.galaxy(url, some),
            "role": lambda some: engines.roles(url, some),
            "file": lambda some: engines.files(url, some),
        }
        for kind, some in of.items():
            progress(f"{kind}: {len(some)} on the list")
            found.missing += await asyncio.to_thread(jobs[kind], some)
    finally:
        await listeners.close()
        await mirror.close()

"""Hosts of a fleet that are simulated: followers as on a host, but for what they do to the kernel.

``python -m bench.simulated_hosts FIRST LAST URL FOLDER SECONDS`` is these hosts until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tproxy.config import joined, reader
from tproxy.config.union import Offer
from tproxy.fleet import keys, roles
from tproxy.fleet.document import Document
from tproxy.fleet.follower import Follower, Times
from tproxy.fleet.held import Held
from tproxy.fleet.presence import Guest
from tproxy.fleet.receipts import APPLIED, Effect
from tproxy.fleet.stores.etcd import EtcdStore
from tproxy.fleet.stores.etcd_client import Account, EtcdClient
from tproxy.kernel.limits import raise_descriptor_limit
from tproxy.model import Network

BLUE = Network("blue", "7")
OWN = reader.parse("own", "tproxy: [{service_port: 53, remote_addr: 10.0.0.53, remote_port: 53}]")


def entries(version: int, number: int) -> str:
    """Return the text of a document of 1.2 KB, with eight services and two routes."""
    lines = ["tproxy:"]
    lines += [
        f"- {{name: s{port}, service_port: {5000 + port}, remote_addr: 10.11.12.{version}, "
        f"remote_port: {port + 80}}}"
        for port in range(8)
    ]
    lines.append("tproxy_routes:")
    for port in (80, 443):
        lines.append(
            f"- {{id: r{number}-{port}, network: blue, guest_mac: '02:00:00:00:{number // 256 % 256:02x}:"
            f"{number % 256:02x}', port: {port}, domain: p{port}.h{number}.example.com}}"
        )
    return "\n".join(lines) + "\n"


class Simulated:
    """A host without a kernel: it computes which services its bridge gets, and has ten guests."""

    def __init__(self, number: int) -> None:
        self._guests = [
            Guest(
                "blue",
                "7",
                f"02:00:00:{number // 256:02x}:{number % 256:02x}:{each:02x}",
                "br0",
                f"vnet{each}",
                0.0,
            )
            for each in range(10)
        ]

    def apply(self, document: Document, expired: bool) -> Effect:
        union = Offer(joined.join(OWN, document.config)).union({BLUE: 1})
        return Effect(APPLIED, errors=tuple(union.problems), bridges={"changed": 1}, at=time.time())

    def guests(self, before: Sequence[Guest]) -> list[Guest]:
        return self._guests

    def counters(self) -> Mapping[str, Any]:
        return {"connections": 0, "routes": {}, "services": {}}


async def inline(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def name(number: int) -> str:
    return f"host{number:05}"


async def simulate(first: int, last: int, url: str, folder: Path, again: float) -> None:
    """Be these hosts, until the process is killed."""
    raise_descriptor_limit()
    trusted = keys.trusted(folder / "key.pub")
    passwords = json.loads((folder / "passwords").read_text())
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    async with aiohttp.ClientSession(connector=connector) as session:
        running = []
        for number in range(first, last):
            host = name(number)
            client = EtcdClient([url], Account(roles.HOST + host, passwords[host]), session)
            held = Held(str(folder / "held" / host))
            follower = Follower(
                host,
                EtcdStore(url, client=client),
                Simulated(number),
                held,
                lambda: trusted,
                times=Times(again, 3600.0),
                run_in_thread=inline,
            )
            running.append(asyncio.ensure_future(follower.run()))
            if number % 20 == 0:
                await asyncio.sleep(0.05)
        await asyncio.gather(*running)


if __name__ == "__main__":
    _first, _last, _url, _folder, _again = sys.argv[1:]
    asyncio.run(simulate(int(_first), int(_last), _url, Path(_folder), float(_again)))

"""fleet places: on which host each route's guest is, for gateways."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tproxy.cli.examples import example
from tproxy.cli.fleet_common import compiled, load, policy_option, with_store
from tproxy.console import EXIT_FAILURE, say

if TYPE_CHECKING:
    from tproxy.fleet.places import Places
    from tproxy.fleet.receipts import Receipt
    from tproxy.fleet.stores.base import Store

FILE = "/var/lib/tproxy/fleet/places.json"

# Seconds in which several receipts count as one piece of news. Routes follow their guests within five.
SETTLE = 0.3


@click.command(epilog=example("tproxy fleet places", "tproxy fleet places --follow"))
@policy_option
@click.option("--follow", is_flag=True, help="Go on, and write the file whenever a guest has moved.")
@click.option("--output", metavar="FILE", help=f"Where to write.  [default: stdout; with --follow {FILE}]")
def places(path: str, follow: bool, output: str | None) -> None:
    """Tell which host has the guest of each route, in JSON, from the receipts of all hosts.

    A host is believed only about its own networks. Guests that several hosts claim are among the problems,
    and the host where they came last has them.
    """
    policy = load(path)
    made = compiled(policy, strict=False)
    from tproxy.fleet import places as placing
    from tproxy.fleet import rollout
    from tproxy.fleet.held import write

    routes = {route.id: route for each in made.hosts.values() for route in each.config.routes}
    networks = {host: each.networks for host, each in made.hosts.items()}
    file = output or (FILE if follow else "")
    last = ""

    def tell(receipts: dict[str, Receipt]) -> Places:
        nonlocal last
        found = placing.locate(routes.values(), receipts.values(), networks, time.time())
        said = {id_: each._asdict() for id_, each in found.routes.items()}
        text = json.dumps({"version": 1, "routes": said, "problems": found.problems}, indent=2)
        if text != last:
            last = text
            if file:
                write(Path(file), f"{text}\n", 0o644)
            else:
                click.echo(text)
        return found

    async def once(store: Store) -> Places:
        found, _ = await store.receipts()
        known = {each.host: it for each in found if (it := rollout.receipt_of(each.host, each.text))}
        return tell(known)

    async def for_ever(store: Store) -> Places:
        known: dict[str, Receipt] = {}
        news = asyncio.Event()

        async def read() -> None:
            async for receipt in rollout.follow_receipts(store):
                known[receipt.host] = receipt
                news.set()

        reading = asyncio.ensure_future(read())
        said: set[str] = set()
        while not reading.done():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), SETTLE)
            await asyncio.sleep(SETTLE)
            news.clear()
            problems = {*tell(known).problems}
            for each in sorted(problems - said):
                say(each)
            said = problems
        await reading
        raise AssertionError("receipts are followed for ever")

    found = with_store(policy, for_ever if follow else once)
    if found.problems:
        sys.exit(EXIT_FAILURE)

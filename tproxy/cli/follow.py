"""follow: has this host follow the store of its fleet."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tproxy.cli.examples import example
from tproxy.config.file import required
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.errors import ConfigError, ProcessError, TproxyError
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL

if TYPE_CHECKING:
    from tproxy.fleet.follower import Follower
    from tproxy.fleet.stores.base import Store

TRUSTED = "/etc/tproxy/fleet/trusted.keys"


@click.command(
    epilog=example("tproxy follow etcd://10.0.0.2:2379 --credentials /etc/tproxy/fleet/credentials.json")
)
@click.argument("url")
@click.option("--host", metavar="NAME", help="The host's name in the fleet.  [default: the host name]")
@click.option(
    "--trusted", default=TRUSTED, show_default=True, metavar="FILE", help="Public keys that sign documents."
)
@click.option("--credentials", default="", metavar="FILE", help="User and password for etcd, in JSON.")
@click.option("--config", metavar="FILE", help="The host's own configuration file.")
@click.option(
    "--most-routes",
    type=click.IntRange(0),
    default=0,
    help="Routes that this host takes.  [default: any number]",
)
@click.option(
    "--most-routes-per-owner", type=click.IntRange(0), default=0, help="The same for each owner's routes."
)
@click.option(
    "--list-again",
    type=click.FloatRange(1, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to fetch the document without a notice.",
)
@click.option(
    "--heartbeat",
    type=click.FloatRange(1, 86400),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to write a receipt without news.",
)
@click.option("--once", is_flag=True, help="Fetch and apply once, then end.")
@click.pass_obj
def follow(
    debug: bool,
    url: str,
    host: str | None,
    trusted: str,
    credentials: str,
    config: str | None,
    most_routes: int,
    most_routes_per_owner: int,
    list_again: float,
    heartbeat: float,
    once: bool,
) -> None:
    """Follow the store URL: file:///DIRECTORY, or etcd://HOST:PORT of etcd v3.

    Applies the document of this host whenever another one is there, and writes a receipt. Without the store
    everything goes on as it is, also after a reboot. Ends with a signal.
    """
    require_root()
    try:
        from tproxy.fleet import keys
        from tproxy.fleet.follower import Follower, Times
        from tproxy.fleet.held import Held
        from tproxy.fleet.judging import Limits
        from tproxy.fleet.stores import opening
        from tproxy.fleet.this_host import ThisHost, name_of
    except ModuleNotFoundError as error:
        raise TproxyError(f"{error}: pip install 'one-tproxy[fleet]'") from error
    output.for_command(DEFAULT_LEVEL, debug=debug)
    keys.trusted(Path(trusted))  # a missing file is told at once
    store = opening.store(url, credentials)
    with suppress(ConfigError):  # the first document may make the only file
        config = required(config, os.environ) if config else config
    follower = Follower(
        name_of(host),
        store,
        ThisHost(config),
        Held(),
        lambda: keys.trusted(Path(trusted)),
        limits=Limits(most_routes, most_routes_per_owner),
        times=Times(list_again, heartbeat),
    )
    sys.exit(asyncio.run(_once(follower, store) if once else _run(follower, store)))


async def _once(follower: Follower, store: Store) -> int:
    try:
        offered = await follower.once()
    finally:
        await store.close()
    click.echo(f"{store.url}: document {offered.serial}, {offered.verdict.value}")
    return EXIT_FAILURE if offered.verdict.value in ("refused", "older") else 0


async def _run(follower: Follower, store: Store) -> int:
    from tproxy.fleet import presence
    from tproxy.process import run_directory, service_manager

    place = run_directory.claim("follow.lock")
    if place is None:
        raise ProcessError("this host follows a store already: another tproxy follow runs")
    loop = asyncio.get_running_loop()
    running: asyncio.Future[Any] = asyncio.ensure_future(follower.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with presence.events() as events:

        def heard() -> None:
            presence.drain(events)
            follower.look_for_guests()

        loop.add_reader(events, heard)
        service_manager.report_ready()
        try:
            await running
        except asyncio.CancelledError:
            return 0
        finally:
            loop.remove_reader(events)
            await store.close()
    return 0

"""route: lists the routes from outside to guests, and tries each hop of one."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone

import click

from tproxy.bridge import nftables
from tproxy.cli.examples import example
from tproxy.config import cache
from tproxy.config.file import search
from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.log import output
from tproxy.model import Endpoint

# Of the JSON documents, as in ``doctor``.
VERSION = 1


@click.group(epilog=example("tproxy route list", "tproxy route test web"))
@click.pass_obj
def route(debug: bool) -> None:
    """List the routes that lead from outside to guests, or try one."""
    require_root()
    output.for_preview(debug=debug)


@route.command("list", epilog=example("tproxy route list --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Print a line for each route of this host, and for those of the file that no bridge has."""
    from tproxy.operations import route_hops

    config = _config()
    entries = {id_: each for each in (config.routes if config else ()) for id_, _ in each.parts}
    errors = route_hops.last_errors()
    rows = []
    for bridge, each in route_hops.routes(nftables.read_maps()):
        entry = entries.pop(each.id, None)
        rows.append(
            {
                "id": each.id,
                "domain": entry.domain if entry else "",
                "network": entry.network if entry else "",
                "bridge": bridge,
                "guest": each.target,
                "expires": _moment(each.expires),
                "state": "expired" if each.has_expired(time.time()) else errors.get(each.id) or "in order",
            }
        )
    for id_, entry in entries.items():
        expired = 0 < entry.expires <= time.time()
        rows.append(
            {
                "id": id_,
                "domain": entry.domain,
                "network": entry.network,
                "bridge": "",
                "guest": _target(entry, id_),
                "expires": _moment(entry.expires),
                "state": "expired" if expired else _elsewhere(entry),
            }
        )
    if as_json:
        click.echo(json.dumps({"version": VERSION, "routes": rows}, indent=2))
    elif rows:
        from tproxy.cli.tables import Table, show

        show([Table("", [*rows[0]], [[*row.values()] for row in rows])])


def _target(entry: RouteEntry, id_: str) -> str:
    """What a route leads to that no bridge has."""
    if entry.network:
        return next(one.target for one in entry.routes if one.id == id_)
    port = dict(entry.parts)[id_]
    return f"node {entry.node}:{port}" if entry.node else str(Endpoint(entry.addr, port))


def _elsewhere(entry: RouteEntry) -> str:
    if entry.node:
        return f"by node {entry.node}"
    return "by HAProxy" if entry.addr else "no bridge of its network is up"


@route.command(epilog=example("tproxy route test web"))
@click.argument("id_", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the hops as JSON.")
def test(id_: str, as_json: bool) -> None:
    """Try each hop of the route ID, and print a line for each; the exit code is 1 when one is bad.

    The guest sees a connection without a byte.
    """
    from tproxy.operations import route_hops

    found = []
    for hop in route_hops.hops(id_, _config()):
        found.append(hop)
        if not as_json:
            click.echo(str(hop))
    if as_json:
        click.echo(json.dumps({"version": VERSION, "hops": [each._asdict() for each in found]}, indent=2))
    sys.exit(EXIT_FAILURE if any(each.level == route_hops.BAD for each in found) else 0)


def _config() -> Config | None:
    """The configuration, if there is a file."""
    path = search(None, os.environ)
    return cache.load(path, remember=False) if path is not None else None


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""

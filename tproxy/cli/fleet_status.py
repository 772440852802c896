"""fleet status, fleet history: who has what, and what hosts had."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tproxy.cli import tables
from tproxy.cli.examples import example
from tproxy.cli.fleet_common import (
    chosen,
    compiled,
    json_option,
    load,
    policy_option,
    public_keys,
    with_store,
)
from tproxy.console import EXIT_FAILURE

if TYPE_CHECKING:
    from tproxy.fleet.issuing import Standing


@click.command(epilog=example("tproxy fleet status", "tproxy fleet status web --json"))
@click.argument("hosts", nargs=-1)
@policy_option
@json_option
def status(hosts: tuple[str, ...], path: str, as_json: bool) -> None:
    """Show which document each of HOSTS has in force, when it said so, and what it reports.

    HOSTS are names, patterns or groups; all without any. The exit code is 1 when a host is not in step with
    the store, or guests are claimed wrongly.
    """
    from tproxy.fleet import places, rollout

    policy = load(path)
    made = compiled(policy, strict=False)
    names = chosen(policy, hosts)
    known = with_store(policy, lambda store: rollout.standings(store, public_keys(policy), names))
    now = time.time()
    rows = [_row(host, known[host], now) for host in names]
    routes = {route.id: route for each in made.hosts.values() for route in each.config.routes}
    networks = {host: each.networks for host, each in made.hosts.items()}
    receipts = [each.receipt for host, each in known.items() if each.receipt is not None and host in {*names}]
    found = places.locate(routes.values(), receipts, networks, now)
    if as_json:
        click.echo(json.dumps({"version": 1, "hosts": rows, "problems": found.problems}, indent=2))
    else:
        columns = ("host", "serial", "issued", "state", "guests", "connections", "receipt", "problem")
        shown = [[str(row[column]) for column in columns] for row in rows]
        right = frozenset({"serial", "issued", "guests", "connections"})
        tables.show([tables.Table("", columns, shown, right), *found.problems])
    if found.problems or any(row["problem"] for row in rows):
        sys.exit(EXIT_FAILURE)


def _row(host: str, known: Standing, now: float) -> dict[str, Any]:
    from tproxy.fleet import document, places

    receipt, issued = known.receipt, known.document
    problem = known.problem
    if receipt is None:
        problem = problem or "no receipt"
    elif issued is not None and receipt.sum == document.sum_of(issued.text):
        problem = problem or receipt.fault
    elif issued is not None:
        problem = problem or receipt.fault or "its receipt is about another document"
    age = now - receipt.time if receipt else 0.0
    if receipt and age > places.STALE:
        problem = problem or "no receipt for some time"
    return {
        "host": host,
        "serial": receipt.serial if receipt else 0,
        "issued": issued.serial if issued else 0,
        "state": receipt.state if receipt else "",
        "guests": len(receipt.guests) if receipt else 0,
        "connections": receipt.counters.get("connections", 0) if receipt else 0,
        "receipt": f"{age:.0f} s ago" if receipt else "",
        "problem": tables.printable(problem),
    }


@click.command(epilog=example("tproxy fleet history node1"))
@click.argument("host")
@policy_option
@json_option
def history(host: str, path: str, as_json: bool) -> None:
    """List the documents that were issued for HOST, the newest first."""
    from tproxy.fleet import document, issuing

    policy = load(path)
    (name,) = chosen(policy, [host])[:1]
    keys = public_keys(policy)
    kept = with_store(policy, lambda store: store.history(name))
    rows = []
    for serial, text in sorted(kept.items(), reverse=True):
        try:
            found = document.read(text, keys)
            size, made, message = len(issuing.entries_of(text).splitlines()), found.made, found.message
            rows.append((serial, issuing.moment(made) if made else "", size, message))
        except document.Refused as error:
            rows.append((serial, "", 0, str(error)))
    columns = ("serial", "made", "lines", "message")
    if as_json:
        listed = [dict(zip(columns, row, strict=True)) for row in rows]
        click.echo(json.dumps({"version": 1, "host": name, "documents": listed}, indent=2))
    else:
        shown = [[*map(str, row)] for row in rows]
        tables.show([tables.Table("", columns, shown, frozenset({"serial", "lines"}))])

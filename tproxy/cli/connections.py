"""connections and kill: show the live connections of guests, and end chosen ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import count

import click

from tproxy.cli import tables
from tproxy.cli.choosing import choosing, words
from tproxy.cli.examples import example
from tproxy.cli.tables import Table, in_bytes, printable
from tproxy.console import EXIT_FAILURE, require_root, say
from tproxy.datapath.choice import ALL
from tproxy.operations import connections as operations
from tproxy.operations.connections import Listing, Row

# Of the JSON document (docs/contract.md, Output of `connections`). It grows when a key goes or changes its
# meaning.
VERSION = 1

# Seconds for which rates are measured, unless the operator says so.
INTERVAL = 1.0

_COLUMNS = (
    *("id", "age", "state", "bridge", "network", "service", "guest", "MAC, port", "endpoint"),
    *("to endpoint", "to guest", "rate to endpoint", "rate to guest", "guest RTT", "endpoint RTT"),
)
_RIGHT = frozenset(_COLUMNS[-6:]) | {"age"}
_GROUPS = (
    *(("id", "age"), ("bridge", "network"), ("service", "endpoint"), ("guest", "MAC, port")),
    *(("to endpoint", "rate to endpoint"), ("to guest", "rate to guest"), ("guest RTT", "endpoint RTT")),
)

_CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: cursor to the top, erase the display


@click.command(
    epilog=example("tproxy connections --bridge br0", "tproxy connections --guest 10.0.0.0/24 --json")
)
@choosing
@click.option(
    "--interval",
    type=click.FloatRange(0, 3600),
    default=INTERVAL,
    show_default=True,
    metavar="SECONDS",
    help="Measure rates for so long; 0: no rates.",
)
@click.option("--watch", is_flag=True, help="Show the table again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the connections as JSON.")
def connections(
    ids: tuple[str, ...],
    bridge: tuple[str, ...],
    guest: tuple[str, ...],
    service: tuple[str, ...],
    interval: float,
    watch: bool,
    as_json: bool,
) -> None:
    """Show the live connections of guests, and sessions of UDP.

    Those of old workers, which only finish, are among them. Several values of one option mean any of them.
    Rates are bytes a second over the interval, RTT is the kernel's round-trip time to guest and endpoint.
    """
    require_root()
    chosen = words(ids, bridge, guest, service)
    if watch and (as_json or not interval):
        raise click.UsageError("--watch goes with neither --json nor --interval 0")
    if not watch:
        found = operations.measured(chosen, interval) if interval else operations.listed(chosen)
        _show(found, as_json=as_json, summary=_count(found.rows))
        sys.exit(_complain(found))
    found = operations.listed(chosen)
    for _ in count():
        found = operations.measured(chosen, interval, found)
        if sys.stdout.isatty():
            click.echo(_CLEAR, nl=False)
        _show(found, as_json=False, summary=_count(found.rows))
        _complain(found)


@click.command(
    epilog=example("tproxy kill --guest 10.0.0.5 --dry-run", "tproxy kill --bridge br0 --service web")
)
@choosing
@click.option("--all", "everything", is_flag=True, help="End the connections of all guests.")
@click.option("--dry-run", is_flag=True, help="Only show what would be ended.")
@click.option("--json", "as_json", is_flag=True, help="Print the connections as JSON.")
def kill(
    ids: tuple[str, ...],
    bridge: tuple[str, ...],
    guest: tuple[str, ...],
    service: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """End chosen connections, with a reset to guest and endpoint.

    A connection is chosen by its ID, which `tproxy connections` shows, or by bridge, guest and service, all
    of which must fit. Guests may connect again at once. Prints the connections that it has ended.
    """
    require_root()
    chosen = words(ids, bridge, guest, service)
    if (chosen == [ALL]) != everything:
        raise click.UsageError(
            "--all ends everything: choose connections, or say --all, not both"
            if everything
            else "no connection is chosen; --all ends everything"
        )
    found = operations.listed(chosen) if dry_run else operations.kill(chosen)
    _show(found, as_json=as_json, summary=f"{'would end' if dry_run else 'ended'} {_count(found.rows)}")
    code = _complain(found)
    for each in dict.fromkeys(ids):
        if all(row["id"] != each for row in found.rows):
            say(f"there is no connection {each} that was chosen")
            code = EXIT_FAILURE
    sys.exit(code)


def _show(found: Listing, *, as_json: bool, summary: str) -> None:
    if as_json:
        click.echo(as_document(found))
        return
    shown: list[str | Table] = [as_table(found.rows)] if found.rows else []
    tables.show([*shown, summary])


def as_document(found: Listing) -> str:
    """Return the connections as JSON."""
    silent = [each.pid for each in found.silent]
    document = {"version": VERSION, "seconds": found.seconds, "silent": silent, "connections": found.rows}
    return json.dumps(document, indent=2)


def as_table(rows: Iterable[Row]) -> Table:
    """Return the connections as a table."""
    return Table("connections", _COLUMNS, [_cells(each) for each in rows], _RIGHT, _GROUPS)


def _cells(row: Row) -> list[str]:
    address = f"[{row['guest']}]" if ":" in row["guest"] else row["guest"]
    udp = row["protocol"] == "udp"
    return [
        *map(
            printable,
            (
                row["id"],
                _age(row["age"]),
                row["state"] + (", draining" if row["draining"] else ""),
                row["bridge"],
                row["network"],
                row["service"],
                f"{address}:{row['guest_port']}",
                f"{row['mac']} {row['port']}".strip(),
                row["endpoint"],
            ),
        ),
        in_bytes(row["bytes_to_endpoint"]),
        in_bytes(row["bytes_to_guest"]),
        _rate(row["rate_to_endpoint"]),
        _rate(row["rate_to_guest"]),
        "" if udp else _milliseconds(row["guest_rtt"]),
        "" if udp else _milliseconds(row["endpoint_rtt"]),
    ]


def _count(rows: list[Row]) -> str:
    return "1 connection" if len(rows) == 1 else f"{len(rows)} connections"


def _age(seconds: float) -> str:
    """Return 3.2 s, 5:07 or 26:05:07."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{in_bytes(rate)}/s"


def _milliseconds(microseconds: int | None) -> str:
    return "" if microseconds is None else f"{microseconds / 1000:.3f} ms"


def _complain(found: Listing) -> int:
    """Name the workers that did not say all; return the exit code."""
    for pid, why in found.silent:
        say(f"worker {pid} {why}; there may be more connections")
    return EXIT_FAILURE if found.silent else 0

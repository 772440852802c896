"""egress log, sbom, report: what was fetched and what was denied."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import click

from tproxy.cli.egress_root import layout_of, root_option, store_of
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, say
from tproxy.egress import report as pages
from tproxy.egress.layout import Layout
from tproxy.egress.ledger import heads, queries
from tproxy.egress.ledger.chain import Head, entries, problems
from tproxy.egress.signing import LEDGER, KeyPair
from tproxy.egress.store.durable import replace
from tproxy.errors import TproxyError, to_ascii

COLUMNS = (
    *("time", "hypervisor", "network", "guest", "port", "verdict", "kind", "name", "version"),
    *("purl", "sha256", "origin", "rule", "reason", "bytes"),
)

since_option = click.option("--since", help="Only what is younger, as 15m, 1h or 7d.")
network_option = click.option("--network", default="", help="Only this network.")
guest_option = click.option("--guest", default="", help="Only this guest: address, MAC or bridge port.")


def _entries(layout: Layout, since: str | None, network: str, guest: str) -> list[dict[str, Any]]:
    age = queries.seconds(since) if since else None
    found = queries.since(entries(layout.ledger), age)
    return list(queries.of(found, network, guest))


@click.command(epilog=example("tproxy egress log --denied --since 1h", "tproxy egress log --verify"))
@click.option("--denied", is_flag=True, help="Group what was denied or missing, the most frequent first.")
@since_option
@network_option
@guest_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a table for spreadsheets.")
@click.option("--verify", is_flag=True, help="Look for edits, gaps and truncation.")
@click.option("--head", "known", multiple=True, help="With --verify: a head as syslog has it.")
@root_option
def log(
    denied: bool,
    since: str | None,
    network: str,
    guest: str,
    as_csv: bool,
    verify: bool,
    known: tuple[str, ...],
    root: Path | None,
) -> None:
    """Print the ledger: what was fetched and what was denied."""
    layout = layout_of(root)
    if verify:
        _verify(layout, [heads.parse(text) for text in known])
        return
    found = _entries(layout, since, network, guest)
    if denied:
        for group in queries.blocked(found):
            what = " ".join(filter(None, (group.kind, group.name, "/".join(sorted(group.versions)[:3]))))
            who = f"network {group.network or '?'}, guests {', '.join(sorted(group.guests)[:5])}"
            click.echo(
                to_ascii(f"{group.count:6} {group.verdict} {what}: {who}, last {group.last}: {group.reason}")
            )
    elif as_csv:
        click.echo(_csv(found), nl=False)
    else:
        for entry in found:
            words = (
                entry.get("time"),
                entry.get("network", "?"),
                entry.get("guest", "?"),
                entry.get("verdict"),
            )
            what = entry.get("purl") or f"{entry.get('kind', '')} {entry.get('name', '')}"
            click.echo(to_ascii(" ".join(map(str, (*words, what, entry.get("reason", "")))).rstrip()))


def _verify(layout: Layout, known: list[Head]) -> None:
    found, count = list[str](), 0
    public = KeyPair(layout.keys, LEDGER).public
    if public.exists():
        signed, wrong = heads.read(layout.ledger, public.read_text())
        known += signed
        found += wrong
    found += problems(layout.ledger, known)
    for line in found:
        click.echo(to_ascii(line))
    if found:
        sys.exit(EXIT_FAILURE)
    count = sum(1 for _ in entries(layout.ledger))
    click.echo(f"the chain of {count} entries is whole; {len(known)} signed heads agree")


def _csv(found: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for entry in found:
        writer.writerow([_cell(entry.get(name, "")) for name in COLUMNS])
    return buffer.getvalue()


def _cell(value: object) -> str:
    """Return a cell that a spreadsheet takes for text: guests must not write formulas (CWE-1236)."""
    text = to_ascii(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


@click.command(epilog=example("tproxy egress sbom --network vnet1 > vnet1.cdx.json"))
@since_option
@network_option
@guest_option
@click.option("--bundle", type=int, help="What this bundle brings, instead of what was fetched.")
@root_option
def sbom(since: str | None, network: str, guest: str, bundle: int | None, root: Path | None) -> None:
    """Print a bill of materials in CycloneDX 1.6. Fetched does not mean installed."""
    from tproxy.egress import sbom as bills  # which takes a second to import

    layout = layout_of(root)
    if bundle is not None:
        bom = bills.of_records(store_of(layout).layer(bundle).all(), f"bundle {bundle}")
    else:
        found = queries.fetched(_entries(layout, since, network, guest))
        subject = " ".join(
            filter(None, (f"network {network}" * bool(network), f"guest {guest}" * bool(guest)))
        )
        bom = bills.of_entries(found, subject or "all networks")
    click.echo(bills.as_json(bom))


@click.command(epilog=example("tproxy egress report --since 30d --output report.html"))
@since_option
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The page's file.")
@root_option
def report(since: str | None, output: Path, root: Path | None) -> None:
    """Write one HTML page about what was fetched, denied and wanted."""
    layout = layout_of(root)
    directory, public = layout.ledger, KeyPair(layout.keys, LEDGER).public
    signed, wrong = heads.read(directory, public.read_text()) if public.exists() else ([], [])
    store = store_of(layout)
    facts = [
        ("Made", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())),
        ("Period", f"the last {since}" if since else "everything in the ledger"),
        ("Active bundle", str(store.serial() or "none")),
        ("Store", f"{store.used():,} bytes"),
        ("Signed heads", str(len(signed))),
    ]
    found = _entries(layout, since, "", "")
    text = pages.page(found, [*wrong, *problems(directory, signed)], facts, store.wanted())
    try:
        replace(output.absolute(), text.encode())
    except OSError as error:
        raise TproxyError(f"cannot write {output}: {error.strerror}") from error
    say(f"{output} is written")

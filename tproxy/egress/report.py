"""The report: one HTML page without scripts and without anything from elsewhere. Pure.

Names in it were chosen by guests, so every text is escaped, and the page's policy allows no script, no
image and no connection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tproxy.egress.ledger.queries import blocked, fetched

Entry = dict[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
body { color: #1c2430; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: #5a6675; font-weight: 600; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #e3e7ec; vertical-align: top; }
td { overflow-wrap: anywhere; } td.n, th.n { text-align: right; white-space: nowrap; }
.bad { color: #a3181a; } .good { color: #1d6b37; } .note { color: #5a6675; }
@media (prefers-color-scheme: dark) {
  body { background: #14181d; color: #d8dee6; } th, .note { color: #93a0b0; }
  th, td { border-color: #2b323b; } .bad { color: #ff8a86; } .good { color: #7fd49a; }
}
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Rows of one table: a page with more is no overview. The ledger has all.
MOST = 500


def page(
    entries: Sequence[Entry],
    problems: Sequence[str],
    facts: Sequence[tuple[str, str]],
    wanted: Iterable[Entry],
) -> str:
    """Return the page about these entries of the ledger.

    ``problems`` are those of its chain; ``facts`` are lines about the node.
    """
    served = [entry for entry in entries if entry.get("verdict") == "allowed"]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Egress report</title><style>{STYLE}</style></head><body>",
        "<h1>Egress report</h1>",
        _table(("", ""), facts),
        "<h2>Ledger</h2>",
        _ledger(entries, problems),
        "<h2>Blocked</h2>",
        _blocked(entries),
        "<h2>Wanted</h2>",
        _table(
            ("kind", "name", "version", "network", "times"),
            [
                (each["kind"], each["name"], each["version"], each["network"], each["count"])
                for each in wanted
            ],
        ),
        "<h2>Networks</h2>",
        _networks(served),
        "<h2>Fetched</h2>",
        '<p class="note">Fetched does not mean installed.</p>',
        _table(
            ("package", "SHA-256", "network", "last"),
            [
                (each["purl"], each.get("sha256", ""), each.get("network", ""), each["time"])
                for each in fetched(served)
            ],
        ),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _ledger(entries: Sequence[Entry], problems: Sequence[str]) -> str:
    if not problems:
        return f'<p class="good">The chain is whole. {len(entries):,} of its entries are in this period.</p>'
    lines = "".join(f"<li>{_text(line)}</li>" for line in problems[:MOST])
    return f'<p class="bad">The chain has {len(problems)} problems.</p><ul>{lines}</ul>'


def _blocked(entries: Iterable[Entry]) -> str:
    rows = [
        (
            group.network,
            group.verdict,
            f"{group.kind} {group.name}",
            group.reason,
            ", ".join(sorted(group.guests)),
            group.last,
            group.count,
        )
        for group in blocked(entries)
    ]
    return _table(("network", "verdict", "what", "why", "guests", "last", "times"), rows)


def _networks(served: Sequence[Entry]) -> str:
    objects: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in served:
        network = str(entry.get("network", ""))
        objects[network] += 1
        sizes[network] += int(entry.get("bytes", 0))
    return _table(
        ("network", "objects", "bytes"),
        [(network, f"{objects[network]:,}", f"{sizes[network]:,}") for network in sorted(objects)],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return '<p class="note">Nothing.</p>'
    numeric = {"times", "objects", "bytes"}
    kinds = [' class="n"' if name in numeric else "" for name in head]
    lines = ["<table>"]
    if any(head):
        cells = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(head, kinds, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    for row in rows[:MOST]:
        cells = "".join(f"<td{kind}>{_text(value)}</td>" for value, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</table>")
    if len(rows) > MOST:
        lines.append(f'<p class="note">{len(rows) - MOST} more are in the ledger.</p>')
    return "\n".join(lines)


def _text(value: object) -> str:
    """Escape a text, and show control characters and those that change the direction of writing."""
    shown = "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in str(value))
    return escape(shown, quote=True)

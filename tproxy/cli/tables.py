"""Tables for people: drawn by ``rich`` on a terminal, and plain columns everywhere else.

Plain text keeps each row on one line, however long, so that other programs can read it. ``rich`` takes a
tenth of a second to import. So it is imported only for a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# Parts of a state, each with the colour that it has on a terminal. The first that is in the text counts.
_COLOURS = (
    *(
        ("not tried", ""),
        ("failed", "red"),
        ("but:", "yellow"),
        ("finishing", "yellow"),
        ("draining", "yellow"),
    ),
    *(
        ("dialling", "cyan"),
        ("half-closed", "cyan"),
        ("closing", "cyan"),
        ("good", "green"),
        ("open", "green"),
    ),
    *(("listening", "green"), ("serving", "green"), ("", "red")),
)


class Table(NamedTuple):
    """A table. Columns in ``right`` are aligned to the right; the one called ``state`` is coloured.

    A terminal shows the columns of one of the ``groups`` in one column, one below the other.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    groups: Sequence[Sequence[str]] = ()


def show(blocks: Iterable[str | Table]) -> None:
    """Print texts and tables, with an empty line between two of them."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        for number, each in enumerate(blocks):
            if number:
                console.print()
            console.print(each if isinstance(each, str) else drawn(each))
        return
    print("\n\n".join(each if isinstance(each, str) else plain(each) for each in blocks), flush=True)


def plain(table: Table) -> str:
    """Return the table as columns of text, under a line that shows how wide they are."""
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    ruler = ["-" * width for width in widths]
    lines = []
    for row in (table.columns, ruler, *table.rows):
        cells = [
            cell.rjust(width) if name in table.right else cell.ljust(width)
            for cell, width, name in zip(row, widths, table.columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def drawn(table: Table) -> object:
    """Return the table for a terminal, without columns that are empty."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    shown = [name for name in table.columns if not rows or any(row[name] for row in rows)]
    made = Drawn(
        title=Text(table.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        row_styles=["", "dim"],
    )
    grouped = {name for group in table.groups for name in group}
    groups = [[each] for each in shown if each not in grouped]
    groups += [some for group in table.groups if (some := [each for each in group if each in shown])]
    groups.sort(key=lambda group: table.columns.index(group[0]))
    for group in groups:
        numbers = group[0] in table.right
        made.add_column(Text("\n".join(group)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        # As Text: in a str, what stands in brackets would be taken for markup.
        cells = [Text("\n".join(row[name] for name in group), style=_colour(row, group)) for group in groups]
        made.add_row(*cells)
    return made


def printable(text: str) -> str:
    """Escape what is not printable: a name comes from another program, and could move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_bytes(count: float) -> str:
    """Return a number of bytes in the unit that fits."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _colour(row: Mapping[str, str], group: Sequence[str]) -> str:
    if "state" not in group:
        return ""
    return next(colour for part, colour in _COLOURS if part in row["state"])

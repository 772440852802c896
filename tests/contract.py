"""The tables of docs/contract.md, and of other pages, for tests that check them row by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SECURITY, LIMITS = DOCS / "contract.md", DOCS / "security.md", DOCS / "limits.md"


class Table(NamedTuple):
    """A table of the page; cells are as they are written there."""

    heading: str  # the nearest one above the table, of any level
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, without the backticks of a cell that is nothing but code."""
        return [bare(row[self.header.index(name)]) for row in self.rows]

    def by_first_column(self) -> dict[str, dict[str, str]]:
        """Return each row as a dictionary from columns to cells, by its first cell without backticks."""
        return {bare(row[0]): dict(zip(self.header, row, strict=True)) for row in self.rows}


def tables(page: Path = PAGE) -> list[Table]:
    """Return all tables of the page, in its order."""
    found = []
    parts = re.split(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            header, _dashes, *rows = map(_cells, block.splitlines())
            found.append(Table(heading, header, rows))
    return found


def table(heading: str, *columns: str, page: Path = PAGE) -> Table:
    """Return the one table below a heading whose header begins with these columns. Raises LookupError."""
    found = [
        each for each in tables(page) if each.heading == heading and each.header[: len(columns)] == [*columns]
    ]
    if len(found) != 1:
        raise LookupError(f"{page.name}, {heading}: {len(found)} tables begin with {columns}")
    return found[0]


def bare(cell: str) -> str:
    """Return a cell without its backticks, when it is nothing but code; otherwise as it is."""
    code = re.fullmatch(r"`([^`]+)`", cell)
    return code[1] if code else cell


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]

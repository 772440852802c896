"""The files that are made of the declarations of options: two pages' tables, and the JSON schema.

``python -m tproxy.config.reference`` (``make options``) writes them anew in a checkout. A test compares them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tproxy import options
from tproxy.config import keys
from tproxy.config.keys import Keys
from tproxy.config.schema import schema
from tproxy.options import Declared

ROOT = Path(__file__).parents[2]
PAGE = "docs/configuration.md"
CONTRACT = "docs/contract.md"
SCHEMA = "etc/tproxy.schema.json"

_PAGE = """\
# Configuration reference

<!-- Made from the declarations of the options: change those, then run `make options` (CONTRIBUTING.md). -->

All keys of the configuration file. [etc/tproxy.yaml](../etc/tproxy.yaml) is a complete example.
[contract.md](contract.md#configuration-file) says which file is read, and what becomes of a value that
cannot be used. `tproxy check FILE` names each problem of a file with its line.

Editors can complete keys, and mark mistakes, by [etc/tproxy.schema.json](../etc/tproxy.schema.json). Those
that use the YAML language server take it from the first line of the file:

    # yaml-language-server: $schema=/path/to/tproxy.schema.json

A number can be written in quotes too. A key without a value counts as missing.

## Keys at the top level

Each of them may begin with a colon. All other keys at this level belong to other programs.

{file}

## Keys of an entry of `tproxy`

An entry offers one endpoint to guests. An entry with a value that cannot be used is skipped with a warning.
An entry is an element of a service map of nftables. Its options are words of the element's comment, see
[Comments](contract.md#comments); where a default counts, the word is missing. Words that do not
fit into the comment are in a set beside the map.

{entry}

## Keys of an entry of `tproxy_bridges`

The first entry that fits a bridge counts.

{bridge}

## Keys of an entry of `tproxy_routes`

A route leads from outside to a port of a guest, see [inward.md](inward.md). An entry with a value that cannot
be used is skipped with a warning.

{route}

## Keys of an entry of `tproxy_tunnels`

The policy of a gateway for tunnels, see [tunnels.md](tunnels.md). An entry with a value that cannot be used
is skipped with a warning.

{tunnel}

## Keys of an entry of `tproxy_zones`

Zones of names in DNS, see [names.md](names.md#keys-of-an-entry-of-tproxy_zones). Hooks and relays do not
read them.
"""


def files() -> dict[str, str]:
    """Return the text of each file, by its path in the repository. Of the contract only tables change."""
    page = _PAGE.format(
        file=_table(["key", "value", "default"], map(_row, keys.FILE.values())),
        entry=_table(["key", "value", "default", "in nftables"], map(_row_of_entry, keys.ENTRY.values())),
        bridge=_table(["key", "value", "default"], map(_row, keys.BRIDGE.values())),
        route=_table(["key", "value", "default", "in nftables"], map(_row_of_entry, keys.ROUTE.values())),
        tunnel=_table(["key", "value", "default"], map(_row, keys.TUNNEL.values())),
    )
    contract = (ROOT / CONTRACT).read_text()
    for name, known in (
        ("top-level", keys.FILE),
        ("entry", keys.ENTRY),
        ("bridge", keys.BRIDGE),
        ("route", keys.ROUTE),
        ("tunnel", keys.TUNNEL),
    ):
        contract = _with_table(contract, [f"{name} key", "value", "default"], known)
    return {
        PAGE: page,
        CONTRACT: _with_words(contract),
        SCHEMA: json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }


def _row(each: Declared) -> list[str]:
    return [f"`{each.key}`", f"{each.option.kind}: {each.option.help}", _default(each)]


def _row_of_entry(each: Declared) -> list[str]:
    place = each.option.nftables or f"the word `{each.field}` of the element's comment"
    return [*_row(each), place]


def _default(each: Declared) -> str:
    if each.option.required:
        return "required"
    return each.option.unset or f"`{each.default_as_written()}`"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with_table(text: str, header: list[str], known: Keys) -> str:
    """Return a page with another table in the place of the one with this header."""
    first = re.escape(f"| {' | '.join(header)} |")
    table = _table(header, map(_row, known.values()))
    return re.sub(rf"^{first}\n(\|.*\n)+", lambda _: table + "\n", text, flags=re.MULTILINE)


def _with_words(text: str) -> str:
    """Return the contract with a row for the word of each option of a service."""
    on = "an element of a service map"
    rows = [[on, f"`{each.field}`", _word(each), _default(each)] for each in keys.SERVICE.values()]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return re.sub(rf"^(\| {on} \|.*\n)+", lambda _: lines, text, flags=re.MULTILINE)


def _word(each: Declared) -> str:
    match each.option.kind:
        case options.Seconds():
            form = "seconds, a decimal number above 0"
        case options.Number():
            form = f"{each.option.kind.unit or 'number'}, a whole number"
        case options.Flag():
            form = "`yes` or `no`"
        case options.Choice():
            form = str(each.option.kind)
        case _:
            form = "text"
    return f"{form}: {each.option.help}"


def main() -> None:
    for name, text in files().items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()

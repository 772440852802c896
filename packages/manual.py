"""Generates man pages and shell completions from the declarations of the commands.

``write`` runs in a process whose ``tproxy`` is that of the source tree to package (``generate``), so it
describes that version. Pages are in the format of man(7); each says what ``--help`` says. click-man, which
does the same for other programs, finds no subcommands here, because our group imports them when they are
called.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

# Completion files, with the names by which the shells find them.
SHELLS: dict[str, type[ShellComplete]] = {
    "bash/tproxy": BashComplete,
    "zsh/_tproxy": ZshComplete,
    "fish/tproxy.fish": FishComplete,
}

# Commands that read their own arguments, each with the module that has the text of its help.
HAND_WRITTEN = {"hook": "tproxy.cli.hook", "event": "tproxy.cli.event"}

FILES = """\
.TP
.I /etc/tproxy/tproxy.yaml
Configuration, unless OpenNebula's
.I /var/tmp/one/etc/vnm/OpenNebulaNetwork.conf
exists or
.B TPROXY_CONFIG
names another file.
.TP
.I /var/log/one_tproxy.log, /var/log/one_tproxy_BRIDGE.log
Logs of the daemon and the commands, and of each relay.
.TP
.I /run/tproxy
Run directory."""

ENVIRONMENT = """\
.TP
.B TPROXY_CONFIG
Configuration file to use.
.TP
.B TPROXY_DEBUG
If set, as
.BR \\-\\-debug ."""


def generate(source: Path, target: Path) -> None:
    """Write pages and completions of the ``tproxy`` in a source tree. Raises CalledProcessError."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, __file__, target.resolve()], check=True, cwd="/", env=environment)


def write(target: str) -> None:
    """Write all files into a folder: ``tproxy*.1``, and one file for each shell."""
    cli = import_module("tproxy.cli.commands").cli
    version = import_module("tproxy").__version__
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    context = click.Context(cli, info_name="tproxy", max_content_width=80, terminal_width=80)
    for command, words, own in _commands(cli, "tproxy", context):
        name = words.replace(" ", "-")
        (folder / f"{name}.1").write_text(_page(command, words, own, version), encoding="utf-8")
    for file, shell in SHELLS.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(shell(cli, {}, "tproxy", "_TPROXY_COMPLETE").source() + "\n")


def _commands(
    command: click.Command, words: str, context: click.Context
) -> Iterator[tuple[click.Command, str, click.Context]]:
    yield command, words, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                own = click.Context(found, info_name=name, parent=context)
                yield from _commands(found, f"{words} {name}", own)


def _page(command: click.Command, words: str, context: click.Context, version: str) -> str:
    name = words.replace(" ", "-")
    short = command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "tproxy {version}" "tproxy"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(short[:1].lower() + short[1:])}",
    ]
    own = HAND_WRITTEN.get(words.removeprefix("tproxy "))
    if own is not None:
        usage, _, rest = import_module(own).HELP.partition("\n\n")
        lines += [".SH SYNOPSIS", ".nf", *map(_escape, _unindent(usage)), ".fi"]
        lines += [".SH DESCRIPTION", ".nf", *map(_escape, rest.splitlines()), ".fi"]
    else:
        pieces = " ".join(command.collect_usage_pieces(context))
        lines += [".SH SYNOPSIS", f".B {_escape(words)}", _escape(pieces)]
        lines += [".SH DESCRIPTION", *_paragraphs(command.help or short)]
        options = [each.get_help_record(context) for each in command.get_params(context)]
        lines += _section("OPTIONS", [record for record in options if record and record[1]])
        if isinstance(command, click.Group):
            lines += _section("COMMANDS", list(_summaries(command, words, context)))
        if command.epilog:
            shown = [line for line in command.epilog.splitlines()[1:] if line.strip()]
            lines += [".SH EXAMPLES", ".nf", *(_escape(line.strip()) for line in shown[1:]), ".fi"]
    if words == "tproxy":
        lines += [".SH FILES", FILES, ".SH ENVIRONMENT", ENVIRONMENT]
        lines += [
            ".SH EXIT STATUS",
            "0 when the effect of the command is there; 1 when something could not be done,",
        ]
        lines += ["with a line for each problem on standard error; 2 when the command line is wrong."]
        lines += ["Other codes are in the contract,", ".IR /usr/share/doc/tproxy/docs/contract.md ."]
    else:
        parent = words.rpartition(" ")[0].replace(" ", "-")
        lines += [".SH SEE ALSO", f".BR {_escape(parent)} (1)"]
    return "\n".join(lines) + "\n"


def _summaries(group: click.Group, words: str, context: click.Context) -> Iterator[tuple[str, str]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            yield f"{words.replace(' ', '-')}-{name}(1)", command.get_short_help_str(200)


def _section(title: str, rows: list[tuple[str, str]]) -> list[str]:
    lines = [f".SH {title}"] if rows else []
    for term, text in rows:
        lines += [".TP", f".B {_escape(term)}", _escape(text) or "\\&"]
    return lines


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += [".PP"] if lines else []
        lines.append(_escape(" ".join(paragraph.replace("\b", "").split())))
    return lines


def _unindent(usage: str) -> list[str]:
    return [line.removeprefix("Usage:").strip() for line in usage.splitlines()]


def _escape(text: str) -> str:
    """Return text in which roff(7) finds no request and no escape, and keeps hyphens as they are typed."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return "\\&" + text if text[:1] in (".", "'") else text


if __name__ == "__main__":
    write(sys.argv[1])

"""Prints the lab: with colours on a terminal, unless NO_COLOR is set (no-color.org)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import click

from tproxy.addresses import SERVICE_ADDRESS

_REASONS = {
    "ECONNREFUSED": "refused",
    "EHOSTUNREACH": "unreachable",
    "ENETUNREACH": "no route",
    "ETIMEDOUT": "no answer",
}


@dataclass(frozen=True)
class Lane:
    """One network of the lab, from its guest to its endpoint."""

    network: str
    bridge: str
    guest: str
    neighbour: str  # the guest's second address
    endpoint: str


@dataclass(frozen=True)
class Run:
    """A command that was run, with its output."""

    command: str
    output: str
    code: int
    seconds: float


@dataclass(frozen=True)
class Question:
    """``who`` asks an address (None: the hypervisor), and ``wanted`` should answer (None: nobody)."""

    who: str | None
    address: str
    port: int
    wanted: str | None


@dataclass(frozen=True)
class Answer:
    """The result of a question: an answer, or the reason why there is none."""

    question: Question
    got: str | None
    reason: str

    @property
    def right(self) -> bool:
        return self.got == self.question.wanted


@dataclass(frozen=True)
class Shown:
    """One line of a scene: what was ``wanted``, and what came."""

    label: str
    wanted: str
    got: str


def topology(lanes: Sequence[Lane], port: int) -> None:
    """Draw the two lanes, and the daemon where they meet."""
    first, second = lanes
    name = max(len(lane.network) for lane in lanes)
    left = [f"{lane.guest} ──[{lane.bridge}]── {SERVICE_ADDRESS}:{port} ─" for lane in lanes]
    blank = " " * (name + 2 + len(left[0]))
    captions = f"{'guest':<{name + 2 + len(first.guest)}}   {'bridge':<9}{'relay':<26}daemon       endpoint"
    _say(click.style("Two networks, one service address, and no routed packet", bold=True))
    _say()
    _say(click.style(f"  {captions}", dim=True))
    _say(f"  {_coloured(first, name)}  {left[0]}╮              ╭─ {first.endpoint}:{port}")
    _say(f"  {blank}├─ one_tproxy ─┤")
    _say(f"  {_coloured(second, name)}  {left[1]}╯              ╰─ {second.endpoint}:{port}")
    _say()


def run(done: Run) -> None:
    """Print a command as if it had been typed, and its output."""
    _say(f"  $ {done.command}  " + click.style(f"{done.seconds:.2f} s", dim=True))
    for line in done.output.expandtabs(4).strip().splitlines():
        _say(f"    {line}")
    if done.code:
        _say(click.style(f"    exit code {done.code}", fg="red"))


def answers(given: Sequence[Answer]) -> None:
    """Print who reaches what: a row for each address, a column for each who asks."""
    columns = list(dict.fromkeys(answer.question.who for answer in given))
    rows = list(dict.fromkeys((answer.question.address, answer.question.port) for answer in given))
    cells = {(each.question.who, each.question.address, each.question.port): each for each in given}
    _say()
    heads = [f"guest {who}" if who else "hypervisor" for who in columns]
    _say(click.style(_row(["who asks:", *heads]), bold=True))
    for address, port in rows:
        shown = [_cell(cells[who, address, port]) for who in columns]
        _say(_row([f"{address}:{port}", *shown]))
    _say()


def scene(title: str, lines: Sequence[Shown]) -> bool:
    """Print a scene; return whether all was as wanted."""
    _say()
    _say("  " + click.style(title, bold=True))
    width = max(len(line.label) for line in lines)
    for line in lines:
        right = line.got == line.wanted
        said = f"✓ {line.got}" if right else f"✗ {line.got}, not {line.wanted}"
        _say(f"    {line.label:<{width}}  " + click.style(said, fg="green" if right else "red"))
    return all(line.got == line.wanted for line in lines)


def verdict(well: bool, *, removed: bool) -> None:
    mark, said, colour = (
        ("✓", "Each guest reaches its own service and nothing else.", "green")
        if well
        else ("✗", "Something is not as expected: see the marks above.", "red")
    )
    _say()
    _say(click.style(f"{mark} {said}", fg=colour, bold=True) + (" The lab is removed." if removed else ""))


def tour_verdict(well: bool, said: str) -> None:
    """Print the end of a tour that is not kept."""
    if not well:
        said = "Something is not as expected: see the marks above."
    _say()
    _say(
        click.style(f"{'✓' if well else '✗'} {said}", fg="green" if well else "red", bold=True)
        + " The lab is removed."
    )


def kept(pid: int, lane: Lane, port: int, tproxy: str) -> None:
    """Print how to look around in a lab that was kept."""
    _say()
    _say("The lab stays. A shell on its hypervisor, and what to try there:")
    for line in (
        f"nsenter --target {pid} --mount --net --pid --uts",
        f"  {tproxy} status --verbose",
        "  nft list ruleset",
        f"  ip netns exec {lane.network} curl http://{SERVICE_ADDRESS}:{port}/",
        "  tail /var/log/one_tproxy.log",
    ):
        _say(f"    {line}")
    _say(f"To remove it: {tproxy} lab --down")


def removed(pid: int | None) -> None:
    _say(f"The lab (process {pid}) is removed." if pid else "No lab is kept; nothing to remove.")


def _coloured(lane: Lane, width: int) -> str:
    # The names of the networks are colours.
    return click.style(f"{lane.network:<{width}}", fg=lane.network, bold=True)


def _cell(answer: Answer) -> str:
    said = answer.got or _REASONS.get(answer.reason, answer.reason)
    if not answer.right:
        return click.style(f"✗ {said}, not {answer.question.wanted or 'silence'}", fg="red")
    return click.style(f"✓ {said}", fg="green") if answer.got else click.style(f"· {said}", dim=True)


def _row(cells: Sequence[str]) -> str:
    # Styled text holds more characters than it shows.
    padding = [" " * (20 - len(click.unstyle(cell))) for cell in cells]
    return "  " + "  ".join(cell + pad for cell, pad in zip(cells, padding, strict=True)).rstrip()


def _say(line: str = "") -> None:
    # None: colours if this is a terminal.
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)

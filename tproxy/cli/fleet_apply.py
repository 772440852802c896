"""fleet apply, fleet rollback: issue documents in stages, and wait for receipts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from tproxy.cli.examples import example
from tproxy.cli.fleet_common import (
    chosen,
    compiled,
    json_option,
    load,
    message_option,
    policy_option,
    secret_key,
    with_store,
)
from tproxy.console import EXIT_FAILURE, say
from tproxy.errors import TproxyError

if TYPE_CHECKING:
    from tproxy.fleet.issuing import Change
    from tproxy.fleet.policy import Policy
    from tproxy.fleet.stores.base import Store


class _Seconds(click.ParamType[float]):
    name = "seconds"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value)
        unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
        try:
            found = float(text[:-1] if unit else text) * (unit or 1)
        except ValueError:
            found = -1.0
        if not 0 <= found <= 86400:
            self.fail(f"{text!a} is not a time such as 30s, 5m or 1h", param, context)
        return found


def _staged(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--dry-run", is_flag=True, help="Print the stages, and issue nothing."),
        click.option(
            "--wait",
            "patience",
            type=_Seconds(),
            default="60s",
            show_default=True,
            help="How long the receipts of a stage may take.",
        ),
        click.option("--pause", type=_Seconds(), default="0s", show_default=True, help="Between two stages."),
        click.option(
            "--then", default="", metavar="N|N%", help="Hosts of each later stage.  [default: all of them]"
        ),
        click.option(
            "--canary", type=click.IntRange(0), default=0, metavar="N", help="Hosts of the first stage."
        ),
    ):
        command = option(command)
    return command


@click.command(epilog=example("tproxy fleet apply", "tproxy fleet apply --canary 2 --then 10% --pause 30s"))
@click.argument("hosts", nargs=-1)
@policy_option
@_staged
@message_option
@json_option
def apply(
    hosts: tuple[str, ...],
    path: str,
    canary: int,
    then: str,
    pause: float,
    patience: float,
    dry_run: bool,
    message: str,
    as_json: bool,
) -> None:
    """Issue what the policy says to HOSTS: names, patterns or groups; all without any.

    Only hosts whose document changes get one. It goes out in stages, and stops at the first host that reports
    an error, or nothing in time; hosts that have theirs by then keep it. The exit code is 1 then.
    """
    from tproxy.fleet import issuing, rollout

    policy = load(path)
    made = compiled(policy, strict=True)
    names = chosen(policy, hosts)
    key = secret_key(policy)
    known = with_store(policy, lambda store: rollout.standings(store, [key.public], names))
    found = issuing.changes({host: made.hosts[host] for host in names}, known)
    _carry_out(policy, found, canary, then, pause, patience, dry_run, message, as_json)


@click.command(epilog=example("tproxy fleet rollback node1", "tproxy fleet rollback web --canary 1"))
@click.argument("hosts", nargs=-1)
@click.option(
    "--to", "serial", type=click.IntRange(1), help="The serial to go back to.  [default: the one before]"
)
@policy_option
@_staged
@message_option
@json_option
def rollback(
    hosts: tuple[str, ...],
    serial: int | None,
    path: str,
    canary: int,
    then: str,
    pause: float,
    patience: float,
    dry_run: bool,
    message: str,
    as_json: bool,
) -> None:
    """Give HOSTS what an older document of theirs said, under a new serial.

    HOSTS are names, patterns or groups; all without any. The policy stays as it is: the next `apply` issues
    what it says.
    """
    from tproxy.fleet import document, issuing, rollout

    policy = load(path)
    names = chosen(policy, hosts)
    key = secret_key(policy)

    async def changes(store: Store) -> list[Change]:
        known = await rollout.standings(store, [key.public], names)
        found = []
        for host in names:
            now = known[host]
            kept = await store.history(host)
            current = now.document.serial if now.document else now.serial
            older = [each for each in kept if (each == serial if serial else each < current)]
            if not older:
                raise TproxyError(
                    f"{host}: there is no document {serial or 'before this one'} in its history"
                )
            old = document.read(kept[max(older)], [key.public], f"{host}, serial {max(older)}")
            if now.document is None or old.content != now.document.content:
                found.append(issuing.back(host, now, old, issuing.entries_of(old.text)))
        return sorted(found, key=lambda each: each.rank)

    found = with_store(policy, changes)
    said = message or f"back to serial {serial}" if serial else message or "back to the one before"
    _carry_out(policy, found, canary, then, pause, patience, dry_run, said, as_json)


def _carry_out(
    policy: Policy,
    found: list[Change],
    canary: int,
    then: str,
    pause: float,
    patience: float,
    dry_run: bool,
    message: str,
    as_json: bool,
) -> None:
    from tproxy.fleet import issuing, rollout

    try:
        stages = issuing.stages(found, canary, then)
    except ValueError:
        raise click.BadParameter(f"--then {then!a} is not a number of hosts such as 10, or 10%") from None
    if dry_run:
        for number, stage in enumerate(stages, 1):
            click.echo(
                f"stage {number}: {', '.join(f'{each.host} (serial {each.serial})' for each in stage)}"
            )
        return
    key = secret_key(policy)
    problem = ""
    with _bar(len(found)) as told:
        try:
            done = with_store(
                policy,
                lambda store: rollout.run(
                    store, stages, key, message, pause=pause, patience=patience, told=told
                ),
            )
        except rollout.Stopped as stopped:
            done, problem = list(stopped.done), str(stopped)
    if as_json:
        left = [each.host for each in found if each.host not in {*done}]
        click.echo(json.dumps({"version": 1, "done": done, "left": left, "problem": problem}, indent=2))
    else:
        click.echo(f"{len(done)} of {len(found)} hosts have their new document in force")
    if problem:
        say(f"stopped: {problem}")
        sys.exit(EXIT_FAILURE)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; otherwise a line for each tenth."""
    if total and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("receipts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=total)

            def draw(host: str, done: int, of: int) -> None:
                progress.update(task, completed=done, description=host)

            yield draw
        return

    def say_tenths(host: str, done: int, of: int) -> None:
        if done * 10 // of != (done - 1) * 10 // of:
            click.echo(f"receipts: {done} of {of}", err=True)

    yield say_tenths

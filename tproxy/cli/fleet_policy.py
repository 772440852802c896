"""fleet check, fleet diff: what a policy means, and what it would change."""

from __future__ import annotations

import json
import sys

import click

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


@click.command(epilog=example("tproxy fleet check", "tproxy fleet check --show node1"))
@policy_option
@click.option("--show", metavar="HOST", help="Print what this host is to have.")
def check(path: str, show: str | None) -> None:
    """Report the problems of the policy, a line each, with file, line, key and value. Asks no store."""
    policy = load(path)
    made = compiled(policy, strict=False)
    if show is not None:
        for host in chosen(policy, [show]):
            click.echo(f"# {host}\n{made.hosts[host].text}", nl=False)
    if made.problems:
        sys.exit(EXIT_FAILURE)
    if show is None:
        groups = f"{len(policy.groups)} {'group' if len(policy.groups) == 1 else 'groups'}"
        click.echo(f"{path}: in order, {len(made.hosts)} hosts in {groups}")


@click.command(epilog=example("tproxy fleet diff", "tproxy fleet diff 'node1*'"))
@click.argument("hosts", nargs=-1)
@policy_option
@json_option
def diff(hosts: tuple[str, ...], path: str, as_json: bool) -> None:
    """Show what `apply` would change, and on which HOSTS: names, patterns or groups; all without any.

    Hosts with the same change are shown together.
    """
    from tproxy.fleet import issuing, rollout

    policy = load(path)
    made = compiled(policy, strict=True)
    names = chosen(policy, hosts)
    known = with_store(policy, lambda store: rollout.standings(store, public_keys(policy), names))
    found = issuing.changes({host: made.hosts[host] for host in names}, known)
    alike = issuing.differences(found)
    if as_json:
        listed = [{"hosts": group, "diff": text} for text, group in alike.items()]
        click.echo(
            json.dumps({"version": 1, "changes": listed, "unchanged": len(names) - len(found)}, indent=2)
        )
        return
    for text, group in alike.items():
        more = f" and {len(group) - 8} more" if len(group) > 8 else ""
        click.echo(f"{', '.join(group[:8])}{more}:\n{text}\n")
    click.echo(f"{len(found)} of {len(names)} hosts would get another document")
    for host in sorted(known.keys() - set(policy.hosts)):
        click.echo(f"{host}: it is in the store, and in no group: it keeps what it has", err=True)

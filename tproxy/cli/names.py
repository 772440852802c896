"""names: keeps names in DNS that lead to the gateways, and shows who may have which."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from tproxy.cli.examples import example
from tproxy.config.file import required
from tproxy.config.services import place
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.errors import TproxyError
from tproxy.log import output

if TYPE_CHECKING:
    from tproxy.inward.names.keeper import Keeper

# Of the JSON document, as in ``doctor``.
VERSION = 1
EXIT_PROBLEMS = 3  # as `tproxy check`

_config = click.option("--config", metavar="FILE", help="The configuration file.")
_gateway = click.option(
    "--gateway", metavar="NAME", help="This host's name in `gateways`; '' for none.  [default: the host name]"
)


@click.group(
    epilog=example("tproxy names check", "tproxy names apply", "tproxy names parent apps.example.com")
)
@click.pass_obj
def names(debug: bool) -> None:
    """Keep names in DNS that lead to the gateways, and show who may have which."""
    require_root()
    output.for_preview(debug=debug)


@names.command(epilog=example("tproxy names check", "tproxy names check Bücher.Example"))
@click.argument("name", required=False)
@_config
def check(name: str | None, config: str | None) -> None:
    """Print all faults of tproxy_zones, and routes that may not have their domain; or the form of NAME.

    Changes nothing and asks nobody. The exit code is 3 where there is a fault.
    """
    from tproxy.inward.names import claims, domain, ledger, reader, wishes

    if name is not None:
        found = domain.normalised(name, wildcard=True)
        click.echo(found)
        if told := domain.homograph(found, ()):
            click.echo(f"note: {told}")
        return
    path = required(config, os.environ)
    read, zones, problems = reader.read(path)
    routes = read.routes
    for each in problems:
        click.echo(each.at(path))
    if problems:
        sys.exit(EXIT_PROBLEMS)
    verdict = claims.judge(zones, routes, ledger.load(ledger.directory()), time.time())
    for each_route in routes:
        if reason := verdict.refused.get(each_route.id):
            where = place(each_route.origin or path, each_route.line)
            click.echo(f"{where}: tproxy_routes: {each_route.id}: {reason}")
    for (zone, owner), reason in verdict.waiting.items():
        entry = next(each for each in zones if (each.domain, each.owner) == (zone, owner))
        click.echo(f"{place(entry.origin or path, entry.line)}: tproxy_zones: {reason}")
    everything = {*(each.domain for each in zones), *(name for name, _ in verdict.granted.values())}
    for each_name in sorted(everything):
        if told := domain.homograph(each_name, everything):
            click.echo(f"note: {told}")
    for zone_ in zones:
        if told := wishes.advice(zone_, zones):
            click.echo(f"note: {told}")
    if verdict.refused:
        sys.exit(EXIT_PROBLEMS)


@names.command("list", epilog=example("tproxy names list --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_config
def list_(as_json: bool, config: str | None) -> None:
    """Print a line for each zone, and for each name that routes have or wish for."""
    from tproxy.inward.names import keeper, ledger

    known = keeper.state(required(config, os.environ), ledger.directory(), time.time())
    zones = []
    for zone in known.zones:
        claim = known.ledger.claims.get((zone.domain, zone.owner))
        if not zone.owner:
            state = "the operator's"
        else:
            state = known.verdict.waiting.get((zone.domain, zone.owner), "proved")
        zones.append(
            {
                "zone": zone.domain,
                "owner": zone.owner,
                "server": str(zone.server or "elsewhere"),
                "gateways": ", ".join(each.name for each in zone.gateways),
                "state": state,
                "proof": claim.by if claim else "",
                "proved": _moment(claim.proved if claim else 0),
                "looked": _moment(claim.looked if claim else 0),
            }
        )
    found = []
    for route in known.routes:
        if route.domain:
            name, zone_of = known.verdict.granted.get(route.id, (route.domain.lower(), None))
            state = known.verdict.refused.get(
                route.id, "granted" if route.id in known.verdict.granted else "expired"
            )
            found.append(
                {
                    "name": name,
                    "route": route.id,
                    "owner": route.owner,
                    "zone": zone_of.domain if zone_of else "",
                    "state": state,
                }
            )
    if as_json:
        click.echo(json.dumps({"version": VERSION, "zones": zones, "names": found}, indent=2))
        return
    from tproxy.cli.tables import Table, show

    listed = (("zones", zones), ("names", found))
    show([Table(title, [*rows[0]], [[*row.values()] for row in rows]) for title, rows in listed if rows])


@names.command(epilog=example("tproxy names parent customer.example"))
@click.argument("zone")
@_config
def parent(zone: str, config: str | None) -> None:
    """Print the records that ZONE's parent, or its owner, has to set: NS, DS, and the proof of control."""
    from tproxy.inward.names import domain, keeper, ledger, model, proof, servers, wishes

    known = keeper.state(required(config, os.environ), ledger.directory(), time.time())
    wanted = domain.normalised(zone)
    found = [each for each in known.zones if each.domain == wanted]
    if not found:
        raise TproxyError(f"{wanted} is no zone of tproxy_zones")
    for each in found:
        if each.owner:
            click.echo(f"; {each.domain}, of {each.owner}")
            if each.proof != model.NAMESERVER:
                token = known.tokens[each.owner]
                click.echo(f'{proof.place(each.domain)}. TXT "{proof.text(token)}"')
        for line in wishes.delegation(each, known.nameservers(each)):
            click.echo(line)
        if each.server is not None:
            try:
                for line in servers.client(each.server).ds(each):
                    click.echo(f"{each.domain}. DS {line}")
            except servers.ZoneMissing:
                click.echo("; the DS record follows when the zone is there")


@names.command(epilog=example("tproxy names prove", "tproxy names prove customer.example"))
@click.argument("zone", required=False)
@_config
def prove(zone: str | None, config: str | None) -> None:
    """Look now for the proofs of all owners, or for those of ZONE; exits with 1 where one is missing."""
    from tproxy.inward.names import domain, keeper, ledger

    only = domain.normalised(zone) if zone else ""
    looked = keeper.prove(required(config, os.environ), ledger.directory(), every=True, only=only)
    if only and not looked:
        raise TproxyError(f"{only} is no zone of tproxy_zones that has an owner")
    missing = False
    for (name, owner), claim in looked.items():
        good = claim.proved and not claim.missing
        missing = missing or not good
        click.echo(f"{'proved' if good else 'not proved'}: {name} by {owner}: {claim.said}")
    if missing:
        sys.exit(EXIT_FAILURE)


@names.command(epilog=example("tproxy names apply", "tproxy names apply --dry-run"))
@click.option("--dry-run", is_flag=True, help="Only print what would change.")
@_gateway
@_config
def apply(dry_run: bool, gateway: str | None, config: str | None) -> None:
    """Write what the zones lack, once; the exit code is 1 where a server did not take it."""
    _pass(_keeper(config, gateway), write=not dry_run)


@names.command(epilog=example("tproxy names run", "tproxy names run --gateway gw1"))
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two looks.",
)
@click.option("--once", is_flag=True, help="Make one pass and end, as `apply` does.")
@_gateway
@_config
def run(every: float, once: bool, gateway: str | None, config: str | None) -> None:
    """Keep the zones in step with the configuration, with what is healthy and with proofs, until ended.

    A fault of the file, and a server that is down, are said once; the records stay, and it tries again.
    """
    from tproxy.inward.names import service

    keeper = _keeper(config, gateway)
    if once:
        _pass(keeper)
    else:
        service.run(keeper, every)


@names.command(epilog=example("tproxy names acme www.apps.example.com"))
@click.argument("name")
@_config
def acme(name: str, config: str | None) -> None:
    """Print how lego gets a certificate for NAME by DNS-01; only for names that routes have."""
    from tproxy.inward.names import acme as challenge
    from tproxy.inward.names import domain, keeper, ledger

    known = keeper.state(required(config, os.environ), ledger.directory(), time.time())
    wanted = domain.normalised(name, wildcard=True)
    for line in challenge.lines(wanted, challenge.zone_for(wanted, known.verdict)):
        click.echo(line)


@names.command(epilog=example("tproxy names up", "tproxy names up --gateway gw1"))
@_gateway
@_config
def up(gateway: str | None, config: str | None) -> None:
    """Have systemd keep `tproxy names run` alive, from now on and after each boot."""
    from tproxy.inward.names import service

    options = ["--config", os.path.abspath(required(config, os.environ))]
    for line in service.up([*options, *(["--gateway", gateway] if gateway is not None else [])]):
        click.echo(line)


@names.command(epilog=example("tproxy names down"))
def down() -> None:
    """End what `up` started. The records stay as they are."""
    from tproxy.inward.names import service

    for line in service.down():
        click.echo(line)


def _pass(keeper: Keeper, *, write: bool = True) -> None:
    if write:
        keeper.prove()
    if not keeper.once(write=write):
        sys.exit(EXIT_FAILURE)


def _keeper(config: str | None, gateway: str | None) -> Keeper:
    from tproxy.inward.names import keeper, ledger

    name = socket.gethostname().partition(".")[0].lower() if gateway is None else gateway
    return keeper.Keeper(required(config, os.environ), ledger.directory(), name, click.echo)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""

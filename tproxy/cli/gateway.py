"""gateway: the front for routes on this host."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tproxy.cli.examples import example
from tproxy.config import joined
from tproxy.config.file import required
from tproxy.console import require_root
from tproxy.log import output

if TYPE_CHECKING:
    from tproxy.config.services import Config
    from tproxy.inward.options import Options

PORT = click.IntRange(1, 65535)


@click.group(epilog=example("tproxy gateway up", "tproxy gateway down --purge"))
@click.pass_obj
def gateway(debug: bool) -> None:
    """Run the front through which clients reach routes: HAProxy, for TLS by name and HTTP by host."""
    require_root()
    output.for_preview(debug=debug)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--rate-per-client",
            type=click.IntRange(1),
            default=2000,
            show_default=True,
            help="New connections of one address in 10 s.",
        ),
        click.option(
            "--most-per-client",
            type=click.IntRange(1),
            default=500,
            show_default=True,
            help="Open connections of one address.",
        ),
        click.option(
            "--state",
            envvar="TPROXY_GATEWAY_STATE",
            default="/var/lib/tproxy-gateway",
            metavar="DIRECTORY",
            show_default=True,
            help="Where certificates of the issuer are kept.",
        ),
        click.option(
            "--acme-dns",
            default="",
            metavar="PROVIDER",
            help="Prove names by DNS, with this provider of lego; its settings come from the environment.",
        ),
        click.option(
            "--acme-ca", default="", metavar="FILE", help="Trust the issuer itself by these certificates."
        ),
        click.option("--acme-email", default="", metavar="ADDRESS", help="Whom the issuer can warn."),
        click.option(
            "--acme",
            default="",
            metavar="URL",
            help="Get certificates from this issuer, for routes whose TLS ends here and that have no file.",
        ),
        click.option("--user", default="haproxy", show_default=True, help="User and group of HAProxy."),
        click.option(
            "--certificates",
            default="",
            metavar="DIRECTORY",
            help="PEM files, each with certificate and key, for routes whose TLS ends here.",
        ),
        click.option("--ports", default="", metavar="FIRST-LAST", help="Ports for routes with gateway_port."),
        click.option("--https-port", type=PORT, default=443, show_default=True),
        click.option("--http-port", type=PORT, default=80, show_default=True),
        click.option(
            "--address", default="", metavar="IP", help="Where to listen.  [default: all addresses]"
        ),
        click.option("--config", metavar="FILE", help="The configuration file."),
    ):
        command = option(command)
    return command


@gateway.command(epilog=example("tproxy gateway up --certificates /etc/tproxy/certificates"))
@_options
def up(config: str | None, **said: Any) -> None:
    """Have the gateway serve the routes of the configuration file.

    Called again, it applies what has changed: routes and certificates without a reload. A file that cannot be
    used changes nothing.
    """
    from tproxy.inward import gateway as front

    done, problems = front.up(*_read(config, said))
    for line in done:
        click.echo(line)
    for line in problems:
        click.echo(f"tproxy: {line}", err=True)


@gateway.command("compile", hidden=True)
@_options
def compile_(config: str | None, **said: Any) -> None:
    """Write the files of HAProxy, for its unit."""
    from tproxy.inward import gateway as front

    front.compile_files(*_read(config, said))


def _read(config: str | None, said: dict[str, Any]) -> tuple[Config, Options]:
    """Return configuration and options; warn of what cannot be used."""
    from tproxy.inward.options import Options

    if said["ports"] and not re.fullmatch(r"[1-9][0-9]{0,4}-[1-9][0-9]{0,4}", said["ports"]):
        raise click.BadParameter(f"{said['ports']!a} is not a range such as 10000-10099")
    read = joined.load(required(config, os.environ))
    for warning in read.warnings:
        click.echo(f"tproxy: {warning.at(read.path)}", err=True)
    return read, Options(**said)


_state = click.option(
    "--state",
    envvar="TPROXY_GATEWAY_STATE",
    default="/var/lib/tproxy-gateway",
    metavar="DIRECTORY",
    show_default=True,
    help="As that of `up`.",
)


@gateway.command(epilog=example("tproxy gateway status"))
@_state
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(state: str, as_json: bool) -> None:
    """Show names, certificates with their last days, and how many connections were refused."""
    from tproxy.inward import facts

    found = facts.facts(state)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(facts.lines(found)))


@gateway.command(epilog=example("tproxy gateway usage", "tproxy gateway usage --metrics"))
@_state
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for each route.")
@click.option("--metrics", is_flag=True, help="Print Prometheus' text format, for each route.")
def usage(state: str, as_json: bool, metrics: bool) -> None:
    """Show how much the routes of each owner were used, also before restarts."""
    from tproxy.inward import files
    from tproxy.inward import usage as uses

    with files.locked(files.directory()):
        ledger = uses.keep(state, files.admin())
    if metrics:
        click.echo(uses.as_metrics(ledger), nl=False)
    elif as_json:
        rows = [
            {"owner": owner, "kind": kind, "route": route, **count._asdict()}
            for (owner, kind, route), count in sorted(ledger.sums.items())
        ]
        click.echo(json.dumps({"version": 1, "usage": rows}, indent=2))
    elif ledger.sums:
        from tproxy.cli.tables import Table, in_bytes, printable, show

        columns = ("owner", "kind", "uses", "from clients", "to clients")
        cells = [
            [printable(owner), kind, str(count.times), in_bytes(count.bytes_in), in_bytes(count.bytes_out)]
            for (owner, kind), count in uses.by_owner(ledger).items()
        ]
        show([Table("", columns, cells, frozenset(columns[2:]))])


@gateway.command(epilog=example("tproxy gateway down --purge"))
@_state
@click.option("--purge", is_flag=True, help="Remove its files too.")
def down(state: str, purge: bool) -> None:
    """End the gateway; open connections end with it."""
    from tproxy.inward import gateway as front

    front.down(state, purge=purge)

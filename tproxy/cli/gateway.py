"""gateway: the front for routes on this host."""

from __future__ import annotations

import os
import re

import click

from tproxy.cli.examples import example
from tproxy.config import reader
from tproxy.config.file import required
from tproxy.console import require_root
from tproxy.log import output

PORT = click.IntRange(1, 65535)


@click.group(epilog=example("tproxy gateway up", "tproxy gateway down --purge"))
@click.pass_obj
def gateway(debug: bool) -> None:
    """Run the front through which clients reach routes: HAProxy, for TLS by name and HTTP by host."""
    require_root()
    output.for_preview(debug=debug)


@gateway.command(epilog=example("tproxy gateway up --certificates /etc/tproxy/certificates"))
@click.option("--config", metavar="FILE", help="The configuration file.")
@click.option("--address", default="", metavar="IP", help="Where to listen.  [default: all addresses]")
@click.option("--http-port", type=PORT, default=80, show_default=True)
@click.option("--https-port", type=PORT, default=443, show_default=True)
@click.option("--ports", default="", metavar="FIRST-LAST", help="Ports for routes with gateway_port.")
@click.option(
    "--certificates",
    default="",
    metavar="DIRECTORY",
    help="PEM files, each with certificate and key, for routes whose TLS ends here.",
)
@click.option("--user", default="haproxy", show_default=True, help="User and group of HAProxy.")
def up(
    config: str | None,
    address: str,
    http_port: int,
    https_port: int,
    ports: str,
    certificates: str,
    user: str,
) -> None:
    """Have the gateway serve the routes of the configuration file.

    Called again, it applies what has changed: routes and certificates without a reload. A file that cannot be
    used changes nothing.
    """
    from tproxy.inward import compile as compiled
    from tproxy.inward import gateway as front

    if ports and not re.fullmatch(r"[1-9][0-9]{0,4}-[1-9][0-9]{0,4}", ports):
        raise click.BadParameter(f"{ports!a} is not a range such as 10000-10099")
    read = reader.load(required(config, os.environ))
    for warning in read.warnings:
        click.echo(f"tproxy: {warning.at(read.path)}", err=True)
    options = compiled.Options(
        http_port=http_port,
        https_port=https_port,
        address=address,
        ports=ports,
        certificates=certificates,
        user=user,
    )
    for line in front.up(read, options):
        click.echo(line)


@gateway.command(epilog=example("tproxy gateway down --purge"))
@click.option("--purge", is_flag=True, help="Remove its files too.")
def down(purge: bool) -> None:
    """End the gateway; open connections end with it."""
    from tproxy.inward import gateway as front

    front.down(purge=purge)

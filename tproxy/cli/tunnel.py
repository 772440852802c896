"""tunnel: the node that dials out to a gateway, and the gateway's side."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tproxy.cli.examples import example
from tproxy.cli.inward_extra import log_to_stderr, require_extra, state_option
from tproxy.console import EXIT_FAILURE
from tproxy.inward.tunnel import settings
from tproxy.inward.tunnel.audit import FILE as AUDIT

# As ``inward.tunnel.identity``, which needs the extra.
NODE_DIRECTORY = "/var/lib/tproxy-tunnel-node"

UNITS = {False: "tproxy-tunnel.service", True: "tproxy-tunnel-gateway.service"}


@click.group(
    invoke_without_command=True,
    epilog=example("tproxy tunnel --check", "tproxy tunnel", "tproxy tunnel serve"),
)
@click.option(
    "--config",
    default=settings.FILE,
    show_default=True,
    metavar="FILE",
    help="The node's file, which `tproxy node token add` prints.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TPROXY_NODE_DIRECTORY",
    default=NODE_DIRECTORY,
    show_default=True,
    help="Where the node keeps its key and certificate.",
)
@click.option("--check", is_flag=True, help="Say what is missing, and end.")
@click.pass_context
def tunnel(context: click.Context, config: str, directory: Path, check: bool) -> None:
    """Keep a tunnel from this host to a gateway, by which the gateway reaches what this host offers.

    It is for a host without a public address, behind NAT. The host makes its key itself, enrols by the join
    token of its file, and tries for ever.
    """
    if context.invoked_subcommand:
        return
    require_extra()
    said = settings.load(config)
    if check:
        from tproxy.inward.tunnel import check as checking

        sound = True
        for line in checking.lines(said, directory):
            click.echo(str(line))
            sound &= line.good
        sys.exit(0 if sound else EXIT_FAILURE)
    import asyncio

    from tproxy.inward.tunnel import node

    log_to_stderr()
    asyncio.run(node.run(said, directory, lambda: None))


@tunnel.command(epilog=example("tproxy tunnel serve --address 203.0.113.1"))
@click.option("--config", metavar="FILE", help="The configuration file, with tproxy_tunnels.")
@click.option("--address", default="", metavar="IP", help="Where to listen.  [default: all addresses]")
@click.option("--port", type=click.IntRange(1, 65535), default=settings.PORT, show_default=True)
@click.option(
    "--audit",
    type=click.Path(path_type=Path, dir_okay=False),
    default=AUDIT,
    show_default=True,
    help="The log of logins, streams and refusals.",
)
@click.option(
    "--node-certificate",
    type=click.FloatRange(1),
    default=24 * 3600,
    show_default=True,
    help="Seconds that a node's certificate is valid.",
)
@click.option(
    "--operator-certificate",
    type=click.FloatRange(1),
    default=12 * 3600,
    show_default=True,
    help="Seconds that an operator's certificate is valid.",
)
@click.option(
    "--places",
    default="/var/lib/tproxy/fleet/places.json",
    show_default=True,
    metavar="FILE",
    help="Where guests of routes with `node: '*'` are.",
)
@state_option
def serve(
    config: str | None,
    address: str,
    port: int,
    audit: Path,
    node_certificate: float,
    operator_certificate: float,
    places: str,
    state: Path,
) -> None:
    """Be the gateway: accept nodes and operators, and lead streams of routes to nodes."""
    require_extra()
    from tproxy.config.file import required
    from tproxy.inward.tunnel import serve as gateway

    log_to_stderr()
    options = gateway.Options(
        required(config, os.environ),
        state,
        str(audit),
        address,
        port,
        node_certificate,
        operator_certificate,
        places,
    )
    gateway.run(options, lambda: click.echo("ready"))


@tunnel.command(epilog=example("tproxy tunnel unit > /etc/systemd/system/tproxy-tunnel.service"))
@click.option("--serve", "gateway", is_flag=True, help="The unit of the gateway.")
def unit(gateway: bool) -> None:
    """Print the unit for systemd that runs `tproxy tunnel`."""
    name = UNITS[gateway]
    text = (Path(__file__).parents[1] / "drivers" / "gateway" / name).read_text()
    click.echo(text.replace("@TPROXY@", f"{sys.executable} -m tproxy"), nl=False)

"""egress host, join: hypervisors that use an egress node elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from tproxy.cli.egress_root import layout_of, root_option
from tproxy.cli.examples import example
from tproxy.console import require_root, say
from tproxy.egress.hosts.certificates import ANY, Hosts, read_link
from tproxy.egress.service import systemd
from tproxy.errors import TproxyError, quoted, to_ascii


@click.group()
def host() -> None:
    """Let hypervisors elsewhere use this node, each for the networks of its certificate."""


@host.command(
    "add", epilog=example("tproxy egress host add hv2 --network build --node egress.example:8444 >hv2.pem")
)
@click.argument("name")
@click.option(
    "--network",
    "networks",
    multiple=True,
    required=True,
    help='A name or id that the host may claim; "*" is all.',
)
@click.option("--node", required=True, metavar="HOST:PORT", help="Where the host finds this node.")
@root_option
def add(name: str, networks: tuple[str, ...], node: str, root: Path | None) -> None:
    """Make a certificate for a hypervisor, and print the file that `tproxy egress join` takes there.

    Its key is in that file and nowhere else.
    """
    require_root()
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}", node):
        raise TproxyError(f"{quoted(node)} is not HOST:PORT")
    if not 0 < int(node.rpartition(":")[2]) < 65536:
        raise TproxyError(f"{quoted(node)} has no port from 1 to 65535")
    if sys.stdout.isatty():
        raise TproxyError("this prints a key: send it to a file")
    sys.stdout.write(Hosts(layout_of(root).hosts).add(name, list(networks), node).decode())


@host.command("list", epilog=example("tproxy egress host list"))
@root_option
def list_hosts(root: Path | None) -> None:
    """Print the hypervisors whose certificates count, each with its networks."""
    require_root()
    for each in Hosts(layout_of(root).hosts).all():
        networks = "all networks" if ANY in each.networks else ", ".join(sorted(each.networks))
        click.echo(to_ascii(f"{each.name}: {networks}"))


@host.command("remove", epilog=example("tproxy egress host remove hv2"))
@click.argument("name")
@root_option
def remove(name: str, root: Path | None) -> None:
    """Let a hypervisor use this node no longer: its next connection is refused."""
    require_root()
    Hosts(layout_of(root).hosts).remove(name)
    say(f"{to_ascii(name)} is taken out")


@click.command(epilog=example("tproxy egress join hv2.pem"))
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def join(file: Path) -> None:
    """On a hypervisor: reach an egress node elsewhere, by the file that `tproxy egress host add` wrote."""
    require_root()
    read_link(file)
    for line in systemd.join(file):
        click.echo(line)

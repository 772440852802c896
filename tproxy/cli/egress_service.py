"""egress up, down, reload, run, ca: the egress as a whole."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from tproxy.cli.egress_root import root_option
from tproxy.cli.examples import example
from tproxy.console import require_root, say
from tproxy.egress.policy.reader import load
from tproxy.egress.service import foreground, links, parts, squids, systemd
from tproxy.egress.squid.authority import Authority, fingerprint
from tproxy.errors import TproxyError


@click.command(epilog=example("tproxy egress up", "tproxy egress up --foreground"))
@click.option("--foreground", "alone", is_flag=True, help="Run here until interrupted, without systemd.")
@root_option
def up(alone: bool, root: Path | None) -> None:
    """Install what is missing, and start the proxy, the mirror and the front."""
    require_root()
    if alone:
        foreground.run(root)
        return
    if root:
        raise TproxyError("--root is for --foreground")
    for line in systemd.up():
        click.echo(line)


@click.command(epilog=example("tproxy egress down"))
@click.option("--purge", is_flag=True, help="Remove the store, the ledger and the authority as well.")
def down(purge: bool) -> None:
    """Stop the egress, and remove its units."""
    require_root()
    for line in systemd.down(purge=purge):
        click.echo(line)


@click.command("reload", epilog=example("tproxy egress reload"))
@root_option
def reload(root: Path | None) -> None:
    """Apply changed ports and inner addresses. Rules, limits and the mode apply without this."""
    require_root()
    node = parts.surroundings(root)
    changed = parts.reload_squid(node, load(node.layout.policy))
    click.echo("squid has a new configuration" if changed else "nothing to change")


_CHANGES = ("handover", "drain", "stop")


@click.command("run", epilog=example("ExecStart=tproxy egress run squid"))
@click.argument("part", type=click.Choice(["squid", "front", "hosts", "link", *_CHANGES]))
@root_option
def run(part: str, root: Path | None) -> None:
    """Run one part in the foreground, for service managers.

    "handover" lets systemd put a new squid in the place of the one that runs, "drain" ends that one when its
    downloads have ended, and "stop" stops all squids.
    """
    require_root()
    node = parts.surroundings(root)
    match part:
        case "squid":
            parts.run_squid(node)
        case "front":
            parts.run_front(node)
        case "hosts":
            links.run_hosts(node)
        case "link":
            links.run_link(node.layout)
        case "handover":
            squids.change(node)
        case "drain":
            squids.drain(node)
        case "stop":
            squids.stop()


@click.command(
    epilog=example("tproxy egress ca", "tproxy egress ca --pem >authority.pem", "tproxy egress ca --rotate")
)
@click.option("--pem", is_flag=True, help="Print the certificates that clients should trust.")
@click.option("--rotate", is_flag=True, help="Make a new authority; the old one stays valid beside it.")
@click.option("--finish", is_flag=True, help="End a rotation: only the new authority is valid from now on.")
@root_option
def ca(pem: bool, rotate: bool, finish: bool, root: Path | None) -> None:
    """Show the authority by which HTTPS is opened, or change it.

    After --rotate and --finish, squid signs with the new authority when it is started again.
    """
    authority = Authority(parts.surroundings(root).layout.authority)
    if rotate or finish:
        require_root()
    if rotate:
        if authority.rotating:
            raise TproxyError("a rotation is under way already: end it by tproxy egress ca --finish")
        authority.rotate()
    if finish:
        authority.drop_old()
    certificate = authority.load()
    if pem:
        click.echo(authority.trusted.read_text(), nl=False)
        return
    click.echo(f"certificate: {authority.certificate}")
    click.echo(f"SHA-256 fingerprint: {fingerprint(certificate)}")
    click.echo(f"valid until: {certificate.not_valid_after_utc:%Y-%m-%d}")
    if authority.rotating:
        click.echo("rotation: the authority before this one is valid too")
    if warning := authority.warning(datetime.now(timezone.utc)):
        say(warning)

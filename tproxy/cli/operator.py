"""operator: the persons who reach nodes of tunnels."""

from __future__ import annotations

import time
from pathlib import Path

import click

from tproxy.cli.examples import example
from tproxy.cli.inward_extra import address, gateway_option, require_extra, state_option
from tproxy.errors import TproxyError, quoted
from tproxy.inward.tunnel import records
from tproxy.inward.tunnel.names import checked_name, checked_pattern
from tproxy.inward.tunnel.operator import DIRECTORY, Account
from tproxy.inward.tunnel.records import Operator
from tproxy.inward.tunnel.settings import PORT, address_of
from tproxy.inward.tunnel.store import Store

# Seconds in which a new operator logs in for the first time.
FIRST_LOGIN = 2 * 86400


@click.group(epilog=example("tproxy operator add alice --nodes 'site-*' --login root"))
def operator() -> None:
    """Let persons reach nodes of tunnels."""


@operator.command(epilog=example("tproxy operator add alice --nodes 'site-*' --login root"))
@click.argument("name")
@click.option("--nodes", required=True, metavar="PATTERN", help="The nodes that the operator may use.")
@click.option("--login", required=True, metavar="USER", help="The operator's user at nodes.")
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The operator's public key; without it, the first login brings it.",
)
@gateway_option
@state_option
def add(name: str, nodes: str, login: str, key_file: Path | None, gateway: str | None, state: Path) -> None:
    """Let a person reach nodes, and print the command for the first login."""
    require_extra()
    from tproxy.inward.tunnel.authority import Authority, key_of, public_text

    name = checked_name(name, "an operator")
    checked_pattern(nodes)
    if not login.isascii() or not login.isprintable() or not login.strip() or ":" in login or " " in login:
        raise click.BadParameter(f"{quoted(login)} is not the name of a user")
    key = public_text(key_of(key_file.read_text())) if key_file else ""
    store = Store(state)
    public = Authority(store).public_key
    with store.locked():
        if store.find(Operator, name):
            raise TproxyError(f"there is an operator {name} already: tproxy operator remove {name}")
        where = address(store, gateway)
        token = "" if key else records.new_token()[1]
        hashed = records.hash_of(token) if token else ""
        store.put(Operator(name, nodes, login, key, hashed, time.time() + FIRST_LOGIN))
    words = f"tproxy operator login {name} --gateway {where} --gateway-key '{public}'"
    click.echo(f"{words} --token {token}" if token else f"{words} --identity FILE")


@operator.command("list", epilog=example("tproxy operator list"))
@state_option
def list_(state: Path) -> None:
    """Print a line for each operator."""
    from tproxy.cli.tables import Table, show

    rows = [
        [each.name, each.nodes, each.login, "known" if each.key else "waits for the first login"]
        for each in Store(state).all(Operator)
    ]
    if rows:
        show([Table("", ["operator", "nodes", "login", "key"], rows)])


@operator.command(epilog=example("tproxy operator remove alice"))
@click.argument("name")
@state_option
def remove(name: str, state: Path) -> None:
    """Let a person in no more. Open sessions end within seconds."""
    store = Store(state)
    with store.locked():
        store.drop(store.required(Operator, checked_name(name, "an operator")))


@operator.command(epilog=example("tproxy operator login"))
@click.argument("name", required=False)
@click.option("--gateway", metavar="HOST[:PORT]", help="The gateway, for the first login.")
@click.option("--gateway-key", metavar="KEY", help="Its public key, for the first login.")
@click.option("--token", default="", help="The token for the first login.")
@click.option(
    "--identity",
    type=click.Path(dir_okay=False),
    default="",
    metavar="FILE",
    help="The own private key.  [default: one that is made]",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TPROXY_OPERATOR_DIRECTORY",
    default=DIRECTORY,
    show_default=True,
    help="Where key, certificate and configuration are kept.",
)
def login(
    name: str | None,
    gateway: str | None,
    gateway_key: str | None,
    token: str,
    identity: str,
    directory: Path,
) -> None:
    """Get a certificate for 12 hours, on the operator's own machine. OpenSSH is all that it needs.

    The options are for the first time.
    """
    account = Account(directory.expanduser())
    if name and gateway and gateway_key:
        where = address_of(gateway, PORT)
        if where is None:
            raise click.BadParameter(f"{gateway!a} is not HOST or HOST:PORT")
        key = " ".join(gateway_key.split()[:2])
        account.begin(
            checked_name(name, "an operator"), where, key, str(Path(identity).absolute()) if identity else ""
        )
    elif name or gateway or gateway_key:
        raise click.UsageError("the first login needs NAME, --gateway and --gateway-key")
    account.login(token)
    click.echo(f"the certificate is valid until {account.certificate_until()}")
    click.echo(f"ssh -F {account.directory}/config NODE, or Include it in ~/.ssh/config")

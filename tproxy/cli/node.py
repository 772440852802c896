"""node: the nodes of a gateway, for its administrator and for operators."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tproxy.cli.examples import example
from tproxy.cli.inward_extra import address, gateway_option, require_extra, state_option
from tproxy.errors import NotRunning, TproxyError, quoted
from tproxy.inward.tunnel import control, openssh, records, settings
from tproxy.inward.tunnel.names import checked_name, checked_pattern
from tproxy.inward.tunnel.operator import DIRECTORY as OPERATOR_DIRECTORY
from tproxy.inward.tunnel.operator import Account
from tproxy.inward.tunnel.records import APPROVED, SUSPENDED, Node, Token
from tproxy.inward.tunnel.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

# Of the JSON documents, as in ``doctor``.
VERSION = 1

operator_option = click.option(
    "--operator",
    "operator_directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TPROXY_OPERATOR_DIRECTORY",
    help="Ask as an operator, with the files of this directory.  [default: on a machine without a "
    f"gateway's state, {OPERATOR_DIRECTORY}]",
)


@click.group(epilog=example("tproxy node list", "tproxy node approve site-a"))
def node() -> None:
    """Look at nodes of tunnels, and decide about them."""


@node.command("list", epilog=example("tproxy node list --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_option
@operator_option
def list_(as_json: bool, state: Path, operator_directory: Path | None) -> None:
    """Print a line for each node. A node is up if it answers now."""
    account = _account(state, operator_directory)
    try:
        found = account.nodes() if account else control.ask(state, "nodes")
    except NotRunning:
        if not state.is_dir():
            raise
        click.echo("tproxy: the gateway is not running: no node can be reached", err=True)
        found = [
            {"name": each.name, "state": each.state, "offers": [], "address": "", "reason": each.reason}
            for each in Store(state).all(Node)
        ]
    if as_json:
        click.echo(json.dumps({"version": VERSION, "nodes": found}, indent=2))
    elif found:
        from tproxy.cli.tables import Table, show

        rows = [[each["name"], each["state"], ", ".join(each["offers"]), each["address"]] for each in found]
        show([Table("", ["node", "state", "offers", "from"], rows)])


def _account(state: Path, directory: Path | None) -> Account | None:
    """The operator's account to ask with; None for the state of a gateway on this host."""
    if directory is None and (state.is_dir() or not Path(OPERATOR_DIRECTORY).expanduser().is_dir()):
        return None
    return Account(Path(directory or OPERATOR_DIRECTORY).expanduser())


def _change(name: str, state: Path, change: Callable[[Node], Node]) -> None:
    store = Store(state)
    with store.locked():
        store.put(change(store.required(Node, checked_name(name, "a node"))))


@node.command(epilog=example("tproxy node approve site-a"))
@click.argument("names", nargs=-1, required=True)
@state_option
def approve(names: tuple[str, ...], state: Path) -> None:
    """Let nodes in that wait for approval. Compare the key with the one that the host shows."""
    for name in names:

        def approved(found: Node) -> Node:
            if found.state == SUSPENDED:
                raise TproxyError(f"node {found.name} is suspended: tproxy node resume {found.name}")
            return found._replace(state=APPROVED)

        _change(name, state, approved)


@node.command(epilog=example("tproxy node suspend site-a --reason 'stolen'"))
@click.argument("name")
@click.option("--reason", default="", help="What is shown with it.")
@state_option
def suspend(name: str, reason: str, state: Path) -> None:
    """End the tunnel of a node, and let it in no more."""
    _change(name, state, lambda found: found._replace(state=SUSPENDED, reason=reason))


@node.command(epilog=example("tproxy node resume site-a"))
@click.argument("name")
@state_option
def resume(name: str, state: Path) -> None:
    """Let a node in again that was suspended."""
    _change(name, state, lambda found: found._replace(state=APPROVED, reason=""))


@node.command(epilog=example("tproxy node remove site-a"))
@click.argument("name")
@state_option
def remove(name: str, state: Path) -> None:
    """Forget a node; its name is free, and its certificates are revoked."""
    store = Store(state)
    with store.locked():
        store.drop(store.required(Node, checked_name(name, "a node")))


@node.command(epilog=example("tproxy node key site-a"))
@click.argument("name")
@state_option
def key(name: str, state: Path) -> None:
    """Print the public key of a node."""
    click.echo(Store(state).required(Node, checked_name(name, "a node")).key)


@node.group(epilog=example("tproxy node token add --nodes 'site-*' --count 20 --until 2027-01-31"))
def token() -> None:
    """Join tokens, by which hosts become nodes."""


@token.command("add", epilog=example("tproxy node token add --nodes 'site-*' --approve > tunnel.yaml"))
@click.option("--nodes", required=True, metavar="PATTERN", help="The names of nodes that may use it.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="For how many nodes.")
@click.option("--until", metavar="DATE", help="Until when it is valid.  [default: for a week]")
@click.option("--approve", is_flag=True, help="Its nodes need no approval.")
@gateway_option
@state_option
def token_add(
    nodes: str, count: int, until: str | None, approve: bool, gateway: str | None, state: Path
) -> None:
    """Make a join token, and print the file tunnel.yaml for its nodes. The token is shown this once."""
    require_extra()
    from tproxy.inward.tunnel.authority import Authority

    checked_pattern(nodes)
    moment = _moment(until) if until else time.time() + 7 * 86400
    store = Store(state)
    public = Authority(store).public_key
    with store.locked():
        where = address(store, gateway)
        id_, text = records.new_token()
        store.put(Token(id_, records.hash_of(text), nodes, count, moment, approve))
    click.echo(settings.text_of(str(where), public, text), nl=False)


@token.command("list", epilog=example("tproxy node token list"))
@state_option
def token_list(state: Path) -> None:
    """Print a line for each join token."""
    from tproxy.cli.tables import Table, show

    now = time.time()
    rows = []
    for each in Store(state).all(Token):
        valid = "revoked" if each.revoked else "expired" if now >= each.until else "valid"
        until = datetime.fromtimestamp(each.until, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        policy = "approved" if each.approve else "wait"
        rows.append([each.id, each.nodes, f"{len(each.used)}/{each.most}", until, policy, valid])
    if rows:
        show([Table("", ["token", "nodes", "used", "until", "nodes are", "state"], rows)])


@token.command(epilog=example("tproxy node token revoke 1a2b3c4d"))
@click.argument("id_", metavar="ID")
@state_option
def revoke(id_: str, state: Path) -> None:
    """Let no more nodes come by a token. Nodes that have come stay."""
    store = Store(state)
    with store.locked():
        known = {each.id: each for each in store.all(Token)}
        if id_ not in known:
            raise TproxyError(f"there is no join token {quoted(id_)}")
        store.put(known[id_]._replace(revoked=True))


@node.command(epilog=example("tproxy node command site-a > tproxy-node", "tproxy node command site-a --unit"))
@click.argument("name")
@click.option("--unit", is_flag=True, help="Print the unit for systemd that runs the script.")
@click.option(
    "--offer",
    "offers",
    multiple=True,
    metavar="NAME=HOST:PORT",
    help="What it offers.  [default: ssh=127.0.0.1:22]",
)
@gateway_option
@state_option
def command(name: str, unit: bool, offers: tuple[str, ...], gateway: str | None, state: Path) -> None:
    """Print a script by which a host is a node with OpenSSH alone."""
    require_extra()
    from tproxy.inward.tunnel.authority import Authority

    name = checked_name(name, "a node")
    store = Store(state)
    public = Authority(store).public_key
    with store.locked():
        where = address(store, gateway)
    if unit:
        click.echo(openssh.node_unit(name, where), nl=False)
        return
    said = dict(each.partition("=")[::2] for each in offers) or {"ssh": "127.0.0.1:22"}
    known = settings.offers_of(said)
    click.echo(openssh.node_script(name, where, public, known), nl=False)


@node.command("ssh-config", epilog=example("tproxy node ssh-config > ~/.ssh/tproxy/config"))
@state_option
@operator_option
def ssh_config(state: Path, operator_directory: Path | None) -> None:
    """Print a configuration of ssh by which `ssh NODE` reaches the operator's nodes, also for Ansible."""
    account = _account(state, operator_directory)
    if account is None:
        raise TproxyError("it is made for an operator: tproxy operator login, or --operator DIRECTORY")
    click.echo(account.config(), nl=False)


def _moment(text: str) -> float:
    try:
        found = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise click.BadParameter(f"{text!a} is not a date such as 2027-01-31") from None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()

"""fleet init: makes what a fleet needs: a key that signs, and in etcd users and roles."""

from __future__ import annotations

from pathlib import Path

import click

from tproxy.cli.examples import example
from tproxy.cli.fleet_common import load, policy_option, with_store
from tproxy.errors import TproxyError

CREDENTIALS = "credentials"


@click.command(epilog=example("tproxy fleet init", "tproxy fleet init --prune"))
@policy_option
@click.option(
    "--out",
    metavar="DIRECTORY",
    help="Where credentials are written.  [default: credentials beside the policy]",
)
@click.option("--prune", is_flag=True, help="Delete users of hosts that are in no group any more.")
def init(path: str, out: str | None, prune: bool) -> None:
    """Make the key that signs documents; in etcd also a user with a role for each host, and require log-in.

    Prints the public key that hosts need, and the file with the credentials of each new user: copy HOST's to
    that host. Can be called again, for instance after a host was added. etcd's own root gets a password too.
    """
    policy = load(path)
    from tproxy.fleet import keys
    from tproxy.fleet.held import HeldProblem
    from tproxy.fleet.stores.etcd import EtcdStore

    if not policy.key:
        raise TproxyError(f"{path}: key is missing: the file that signs documents")
    file = Path(policy.key)
    made = keys.secret(file) if file.exists() else keys.create(file, Path(path).stem)
    click.echo(f"hosts trust this line in /etc/tproxy/fleet/trusted.keys: {made.public.line(file.stem)}")
    folder = Path(out) if out else Path(path).resolve().parent / CREDENTIALS
    if policy.store.startswith("file://"):
        try:
            for each in ("documents", "receipts", "history"):
                Path(policy.store.removeprefix("file://"), each).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HeldProblem(f"{policy.store}: {error.strerror}") from error
        return

    async def work(store: object) -> None:
        from tproxy.fleet import roles
        from tproxy.fleet.stores.etcd_client import Account

        assert isinstance(store, EtcdStore)
        root = roles.root_client(store, policy.store, Account(), folder)
        try:
            await roles.set_up(root, policy.hosts, folder, prune=prune, told=click.echo)
        finally:
            await root.close()

    # Before the first call nobody needs to log in; afterwards root does, whose file is in ``folder``.
    with_store(policy._replace(credentials=""), work)

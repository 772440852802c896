"""Users and roles of a fleet in etcd: a host reads its document, writes its receipt, and nothing else.

Operators read and write all of the fleet's prefix, gateways read receipts. Each user has a role of the same
name. ``set_up`` can be called again: what is there stays, and what is missing is added.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tproxy.fleet.held import write
from tproxy.fleet.stores.base import Denied, StoreError
from tproxy.fleet.stores.etcd import EtcdStore, end_of
from tproxy.fleet.stores.etcd_client import Account, EtcdClient, Json, encode

HOST, OPERATOR, GATEWAY, ROOT = "host-", "operator", "gateway", "root"


class Permission(NamedTuple):
    """READ, WRITE or READWRITE for a key, or for what begins with it."""

    kind: str
    key: str
    prefix: bool = False

    def as_json(self) -> Json:
        found = {"permType": self.kind, "key": encode(self.key)}
        return {**found, "range_end": encode(end_of(self.key))} if self.prefix else found


def permissions(store: EtcdStore, hosts: Iterable[str]) -> dict[str, list[Permission]]:
    """Return what each user may do. Pure."""
    found = {
        HOST + host: [
            Permission("READ", store.document_key(host)),
            Permission("READWRITE", store.receipt_key(host)),
        ]
        for host in hosts
    }
    found[OPERATOR] = [Permission("READWRITE", f"{store.prefix}/", prefix=True)]
    found[GATEWAY] = [Permission("READ", store.receipt_key(""), prefix=True)]
    return found


async def set_up(
    store: EtcdStore, hosts: Iterable[str], folder: Path, *, prune: bool, told: Callable[[str], None]
) -> None:
    """Have users and roles in etcd, write the credentials of new users into ``folder``, and require log-in.

    ``prune`` deletes users of hosts that are not among ``hosts``. ``told`` is called with each user that is
    new or gone. Raises StoreError, and HeldProblem where a file cannot be written.
    """
    client = store.client
    users = {*(await client.ask("/v3/auth/user/list", {})).get("users", ())}
    roles = {*(await client.ask("/v3/auth/role/list", {})).get("roles", ())}
    wanted = permissions(store, hosts)
    for name in (ROOT, *wanted):
        if name not in roles:
            await client.ask("/v3/auth/role/add", {"name": name})
        for each in wanted.get(name, ()):
            await client.ask("/v3/auth/role/grant", {"name": name, "perm": each.as_json()})
        if await _have_user(client, name, folder / f"{name}.json", name in users):
            told(f"user {name}: {folder / f'{name}.json'}")
        await client.ask("/v3/auth/user/grant", {"user": name, "role": name})
    for name in sorted(users - {ROOT, *wanted}) if prune else ():
        if name.startswith(HOST):
            await client.ask("/v3/auth/user/delete", {"name": name})
            await client.ask("/v3/auth/role/delete", {"role": name})
            told(f"user {name}: deleted")
    await client.ask("/v3/auth/enable", {})


async def _have_user(client: EtcdClient, name: str, file: Path, known: bool) -> bool:
    """Have a user whose password is in the file; return whether the password is new."""
    if known and file.exists():
        return False
    password = secrets.token_urlsafe(24)
    # The file first: a password that only etcd knows would lock everybody out.
    write(file, json.dumps({"user": name, "password": password}) + "\n")
    path = "/v3/auth/user/changepw" if known else "/v3/auth/user/add"
    try:
        await client.ask(path, {"name": name, "password": password})
    except (StoreError, Denied):
        file.unlink(missing_ok=True)
        raise
    return True


def root_client(store: EtcdStore, url: str, account: Account, folder: Path) -> EtcdStore:
    """Return the store as root has it, whose password an earlier call has put into ``folder``."""
    file = folder / f"{ROOT}.json"
    if account.user or not file.exists():
        return store
    found = json.loads(file.read_text())
    return EtcdStore(url, account._replace(user=found["user"], password=found["password"]))

"""What the subcommands of `tproxy fleet` share: the policy, its store and its key."""

from __future__ import annotations

import asyncio
import fnmatch
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tproxy.console import EXIT_FAILURE
from tproxy.errors import TproxyError

if TYPE_CHECKING:
    from tproxy.fleet.compiling import Compiled
    from tproxy.fleet.keys import PublicKey, SecretKey
    from tproxy.fleet.policy import Policy
    from tproxy.fleet.stores.base import Store

DEFAULT_POLICY = "/etc/tproxy/fleet.yaml"

T = TypeVar("T")


def policy_option(command: Callable[..., None]) -> Callable[..., None]:
    option = click.option(
        "--policy", "path", default=DEFAULT_POLICY, show_default=True, metavar="FILE", help="The policy."
    )
    return option(command)


def message_option(command: Callable[..., None]) -> Callable[..., None]:
    option = click.option("--message", "-m", default="", help="A word for the history, such as a ticket.")
    return option(command)


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def load(path: str) -> Policy:
    """Read the policy. Raises ConfigError; and TproxyError without the extra."""
    try:
        from tproxy.fleet import policy
    except ModuleNotFoundError as error:
        raise TproxyError(f"{error}: pip install 'one-tproxy[fleet]'") from error
    return policy.load(path)


def compiled(policy: Policy, *, strict: bool) -> Compiled:
    """Compile the policy; print each fault, and with ``strict`` end the command if there is one."""
    from tproxy.fleet import compiling

    made = compiling.compile_policy(policy)
    for problem in made.problems:
        click.echo(problem, err=True)
    if made.problems and strict:
        sys.exit(EXIT_FAILURE)
    return made


def secret_key(policy: Policy) -> SecretKey:
    """Read the key of the policy. Raises TproxyError."""
    from tproxy.fleet import keys

    if not policy.key:
        raise TproxyError(f"{policy.path}: key is missing: the file that signs documents")
    return keys.secret(Path(policy.key))


def public_keys(policy: Policy) -> Sequence[PublicKey]:
    return [secret_key(policy).public]


def chosen(policy: Policy, patterns: Iterable[str]) -> list[str]:
    """Return the hosts of the policy that names, patterns or names of groups choose; all without any."""
    wanted = list(patterns)
    if not wanted:
        return policy.hosts
    groups = {each.name: each.hosts for each in policy.groups}
    found: dict[str, None] = {}
    for each in wanted:
        hosts = groups.get(each) or [host for host in policy.hosts if fnmatch.fnmatchcase(host, each)]
        if not hosts:
            raise TproxyError(f"{policy.path}: {each!a} is no host and no group of the policy")
        found |= dict.fromkeys(hosts)
    return list(found)


def with_store(policy: Policy, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Open the store of the policy, do the work, and close it. Raises TproxyError."""
    from tproxy.fleet.stores import opening

    async def run() -> T:
        store = opening.store(policy.store, policy.credentials)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())

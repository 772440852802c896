"""egress check, allow, deny, learned: the policy."""

from __future__ import annotations

import fileinput
import sys
from pathlib import Path

import click

from tproxy.cli.egress_root import layout_of, root_option
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE
from tproxy.egress.layout import Layout
from tproxy.egress.policy import edit, proposing, reader
from tproxy.egress.policy.rules import ANY
from tproxy.errors import TproxyError

policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help=f"The file with the policy, instead of {Layout().policy}.",
)


@click.command(epilog=example("tproxy egress check"))
@policy_option
@root_option
def check(policy: Path | None, root: Path | None) -> None:
    """Print all errors of the policy, a line each. Changes nothing."""
    policy = policy or layout_of(root).policy
    try:
        found = reader.load(policy, look=True)
    except reader.PolicyError as error:
        for problem in error.problems:
            click.echo(problem.at(str(policy)), err=True)
        sys.exit(EXIT_FAILURE)
    count = len(found.rules)
    click.echo(f"{policy}: in order, mode {found.mode}, {count} {'rule' if count == 1 else 'rules'}")


def _edit(policy: Path, name: str, network: str, *, allowing: bool) -> None:
    changed = edit.set_pypi(policy, name, network, allow=allowing)
    verb = "allowed" if allowing else "denied"
    who = "all networks" if network == ANY else f"network {network}"
    click.echo(f"{policy}: {name} is {verb} to {who}{'' if changed else ' already'}")


def _command(verb: str, text: str) -> click.Command:
    @click.command(verb, help=text, epilog=example(f"tproxy egress {verb} pypi requests --network build"))
    @click.argument("kind", type=click.Choice(["pypi"]))
    @click.argument("name")
    @click.option("--network", default=ANY, help="Only for this network; without, for all.")
    @policy_option
    @root_option
    def command(kind: str, name: str, network: str, policy: Path | None, root: Path | None) -> None:
        _edit(policy or layout_of(root).policy, name, network, allowing=verb == "allow")

    return command


allow = _command("allow", "Allow a package: edit the policy, which applies within a second.")
deny = _command("deny", "Deny a package: edit the policy, which applies within a second.")


@click.command(epilog=example("tproxy egress learned"))
@root_option
def learned(root: Path | None) -> None:
    """Print rules for what a network fetched while the policy let it learn. Changes nothing."""
    layout = layout_of(root)
    logs = layout.access_logs or [layout.access_log]
    try:
        with fileinput.input(logs, openhook=fileinput.hook_encoded("utf-8", "replace")) as lines:
            found = proposing.read(lines, reader.load(layout.policy).upstreams)
    except OSError as error:
        raise TproxyError(f"cannot read {error.filename}: {error.strerror}") from error
    click.echo(proposing.rules(found) or "# nothing was fetched that rules do not allow already")

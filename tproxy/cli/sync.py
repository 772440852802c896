"""sync: send one configuration file to many hypervisors."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from tproxy.cli import tables
from tproxy.cli.examples import example
from tproxy.config import check, reader
from tproxy.config.file import required, text_of
from tproxy.console import EXIT_FAILURE, say
from tproxy.errors import TproxyError
from tproxy.operations import sync as syncing

DEFAULT_PATH = "/etc/tproxy/tproxy.yaml"


@click.command(epilog=example("tproxy sync --dry-run node1 node2", "tproxy sync --hosts hypervisors.txt"))
@click.argument("hosts", nargs=-1)
@click.option(
    "--hosts",
    "hosts_file",
    metavar="FILE",
    help="File with a host on each line; # begins a comment.",
)
@click.option("--config", "file", metavar="FILE", help="Configuration file to send.")
@click.option("--remote-path", default=DEFAULT_PATH, show_default=True, help="Path of the file on the hosts.")
@click.option("--ssh", default="ssh", show_default=True, help="The ssh command, with your own options.")
@click.option("--sudo", is_flag=True, help="Run as root on the hosts by sudo -n.")
@click.option("--command", default="tproxy", show_default=True, help="The tproxy command on the hosts.")
@click.option(
    "--jobs", "-j", default=8, show_default=True, type=click.IntRange(1, 256), help="Hosts at a time."
)
@click.option("--dry-run", is_flag=True, help="Check the file on the hosts and print what would change.")
def sync(
    hosts: tuple[str, ...],
    hosts_file: str | None,
    file: str | None,
    remote_path: str,
    ssh: str,
    sudo: bool,
    command: str,
    jobs: int,
    dry_run: bool,
) -> None:
    """Send the configuration file to HOSTS by ssh, and apply it there.

    Each host checks the file first, and keeps its old file if the check finds a problem. A host that fails
    does not stop the others. The exit code is 1 when any host failed.
    """
    named = list(dict.fromkeys([*hosts, *(syncing.hosts_in(Path(hosts_file)) if hosts_file else ())]))
    if not named:
        raise click.UsageError("name hosts, or a file of hosts with --hosts FILE")
    if not remote_path.startswith("/"):
        raise click.UsageError("--remote-path must begin with /")
    path = required(file, os.environ)
    plan = syncing.Plan(_checked(path), remote_path, _words(ssh), command, sudo, dry_run)
    results = {}
    with click.progressbar(length=len(named), label=os.path.basename(path), file=sys.stderr, width=30) as bar:
        for result in syncing.to_all(plan, named, jobs):
            results[result.host] = result
            bar.update(1)
    rows = [results[host] for host in named]
    tables.show([tables.Table("hosts", ("host", "result", "detail"), rows)])
    sys.exit(EXIT_FAILURE if any(row.failed for row in rows) else 0)


def _words(ssh: str) -> list[str]:
    try:
        words = shlex.split(ssh)
    except ValueError as error:
        raise click.UsageError(f"--ssh: {error}") from None
    if not words:
        raise click.UsageError("--ssh: no command")
    return words


def _checked(path: str) -> bytes:
    text = text_of(path)  # read once, so that the checked text is sent; and a pipe can be read only once
    # Host names are not looked up: the answers here say nothing about those on the hosts.
    problems = check.problems(reader.parse(path, text, thorough=True), check.all_resolve)
    for problem in problems:
        say(problem.at(path))
    if problems:
        raise TproxyError(f"{path} has problems: nothing was sent")
    return text.encode()

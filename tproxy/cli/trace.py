"""trace: follows the attempts of one guest to reach a service, live."""

from __future__ import annotations

import logging
import os
import sys

import click

from tproxy.addresses import as_ipv6, is_ipv4
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.errors import BadName
from tproxy.kernel import links
from tproxy.log import output
from tproxy.names import check_mac
from tproxy.trace.follower import Follower
from tproxy.trace.line import Line
from tproxy.trace.wish import Wish


@click.command(
    epilog=example("tproxy trace --guest 10.0.0.5", "tproxy trace --port vnet3 --count 1 --json"),
)
@click.option("--guest", metavar="ADDRESS", help="Follow the guest with this IP address.")
@click.option("--mac", metavar="MAC", help="Follow the guest with this MAC address.")
@click.option("--port", metavar="DEV", help="Follow what comes from this port of a bridge.")
@click.option("--bridge", metavar="NAME", help="Look at this bridge only.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many attempts.")
@click.option(
    "--for", "seconds", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End after so long."
)
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
@click.pass_obj
def trace(
    debug: bool,
    guest: str | None,
    mac: str | None,
    port: str | None,
    bridge: str | None,
    count: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Follow the attempts of one guest to reach a service, while they happen.

    Prints what is seen of each attempt: its frames on the bridge, which rule dropped one, what the namespace
    answered, and what a worker did with the connection. The last line of an attempt says what went wrong. It
    restarts nothing, and leaves nothing, not even when it is killed. End it with Ctrl-C. The exit code is 1
    when an attempt has failed.
    """
    require_root()
    output.for_preview(debug=debug)
    if not debug:
        output.set_level(logging.ERROR)
    wish = _wish(guest, mac, port, bridge)
    follower = Follower(wish, _Printer(as_json=as_json).show, count or 0, seconds or 0.0)
    try:
        follower.run()
    except BrokenPipeError:  # whoever read the lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_FAILURE if follower.failed else 0)


class _Printer:
    """Prints lines as they come."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, line: Line) -> None:
        print(line.as_json() if self._as_json else str(line), flush=True)


def _wish(guest: str | None, mac: str | None, port: str | None, bridge: str | None) -> Wish:
    """What the options say. Raises click.UsageError."""
    if sum(each is not None for each in (guest, mac, port)) != 1:
        raise click.UsageError("whom to follow? One of --guest, --mac and --port")
    address = guest or ""
    if guest is not None and not is_ipv4(guest):
        address = as_ipv6(guest)
        if not address:
            raise click.BadParameter(f"{guest!a} is not an IP address", param_hint="--guest")
    try:
        known = check_mac(mac) if mac is not None else ""
    except BadName as error:
        raise click.BadParameter(str(error), param_hint="--mac") from None
    names = (links.real_name(each) if each else "" for each in (port, bridge))
    return Wish(address, known, *names)

"""probe: connects to the services of a bridge as a guest does, and shows each step with its duration."""

from __future__ import annotations

import json
import sys
from contextlib import closing

import click

from tproxy.addresses import is_ipv4
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.doctor.finding import BAD, LEVELS
from tproxy.doctor.probe import journey
from tproxy.doctor.probe.journey import Wish
from tproxy.kernel import links
from tproxy.log import output

# Of the JSON document (docs/contract.md, Output of `probe`), as in ``doctor``.
VERSION = 1


@click.command(
    epilog=example("tproxy probe br0:5030", "tproxy probe br0 --gateway 10.0.0.1 --address 10.0.0.99")
)
@click.argument("where", metavar="BRIDGE[:PORT]")
@click.option("--address", metavar="IPV4", help="Address of the guest.  [default: a random link-local one]")
@click.option("--gateway", metavar="IPV4", help="Gateway of the network, which has to answer ARP.")
@click.option("--vlan", type=click.IntRange(1, 4094), metavar="VID", help="VLAN of the guest's port.")
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.pass_obj
def probe(
    debug: bool, where: str, address: str | None, gateway: str | None, vlan: int | None, as_json: bool
) -> None:
    """Connect to the services of a bridge as a guest does: by a route, by a default gateway, and over IPv6.

    Attaches a guest to the bridge for some seconds, and prints each step with its duration. Nobody takes it
    for a guest that needs the bridge, and it leaves nothing, not even when it is killed. Without PORT it
    visits up to 8 ports. The exit code is 1 when a step is bad.
    """
    require_root()
    output.for_preview(debug=debug)
    bridge, port = _parse(where)
    for each in (address, gateway):
        if each is not None and not is_ipv4(each):
            raise click.BadParameter(f"{each!a} is not an IPv4 address")
    steps = []
    with closing(journey.travel(Wish(links.real_name(bridge), port, address, gateway, vlan))) as travel:
        for step in travel:
            steps.append(step)
            if not as_json:
                click.echo(str(step))
    worst = max((each.level for each in steps), key=LEVELS.index)
    if as_json:
        document = {"version": VERSION, "worst": worst, "steps": [each.as_json() for each in steps]}
        click.echo(json.dumps(document, indent=2))
    sys.exit(EXIT_FAILURE if worst == BAD else 0)


def _parse(where: str) -> tuple[str, int | None]:
    bridge, colon, port = where.rpartition(":")
    if not colon:
        return where, None
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise click.BadParameter(f"{port!a} is not a port")
    return bridge, int(port)

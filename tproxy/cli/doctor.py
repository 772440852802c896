"""doctor: checks everything between a guest and its endpoints, and names what repairs a fault."""

from __future__ import annotations

import json
import logging
import sys

import click

from tproxy.cli import doctor_egress
from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, require_root
from tproxy.doctor import examination
from tproxy.doctor.finding import BAD, Finding, worst
from tproxy.kernel import links
from tproxy.log import output

# Of the JSON document (docs/contract.md, Output of `doctor`).
VERSION = 1


@click.command(epilog=example("tproxy doctor", "tproxy doctor --bridge br0 --json"))
@click.option("--bridge", metavar="NAME", help="Check this bridge only, and the host.")
@click.option("--config", "file", metavar="FILE", help="Configuration file to use.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def doctor(debug: bool, bridge: str | None, file: str | None, as_json: bool) -> None:
    """Check kernel, bridges, processes, configuration and endpoints.

    Prints a line for each check: good, warning or bad, and the command that repairs it. The first bad line
    names what to repair first. Changes nothing. The exit code is 1 when a line is bad.
    """
    require_root()
    output.for_preview(debug=debug)
    if not debug:
        output.set_level(logging.ERROR)  # what is worth a warning is a finding
    found = examination.examine(links.real_name(bridge) if bridge is not None else None, file)
    found += doctor_egress.findings()
    if as_json:
        click.echo(as_document(found))
    else:
        for each in found:
            click.echo(str(each))
    sys.exit(EXIT_FAILURE if worst(found) == BAD else 0)


def as_document(found: list[Finding]) -> str:
    """The findings as JSON."""
    document = {"version": VERSION, "worst": worst(found), "findings": [each._asdict() for each in found]}
    return json.dumps(document, indent=2)

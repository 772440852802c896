"""The options of commands that choose connections, and the words that they become (``datapath.choice``)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

import click

from tproxy.datapath.choice import ALL, BRIDGE, GUEST, ID, MAC, SERVICE

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as ``bridge``, ``guest``, ``service`` and ``ids``."""
    for decorate in (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--service", multiple=True, metavar="NAME|PORT", help="Those of this service."),
        click.option(
            "--guest",
            multiple=True,
            metavar="ADDRESS|MAC",
            help="Those of this guest, or of a network of addresses.",
        ),
        click.option("--bridge", multiple=True, metavar="NAME", help="Those of this bridge."),
    ):
        command = decorate(command)
    return command


def words(
    ids: tuple[str, ...], bridge: tuple[str, ...], guest: tuple[str, ...], service: tuple[str, ...]
) -> list[str]:
    """Return the words of a choice; without any option those that choose everything.

    Raises click.BadParameter.
    """
    found = [
        *(f"{ID}={each}" for each in ids),
        *(f"{BRIDGE}={each}" for each in bridge),
        *(f"{SERVICE}={each}" for each in service),
        *map(_guest, guest),
    ]
    return found or [ALL]


def _guest(text: str) -> str:
    if _MAC.fullmatch(text.lower()):
        return f"{MAC}={text.lower()}"
    try:
        return f"{GUEST}={ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        raise click.BadParameter(f"{text!a} is neither an address nor a MAC", param_hint="--guest") from None

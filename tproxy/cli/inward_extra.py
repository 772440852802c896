"""The check that the packages of the extra ``inward`` are there, and options that its commands share."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.settings import Address, address_of
from tproxy.inward.tunnel.store import DIRECTORY, Store

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TPROXY_TUNNEL_STATE",
    default=DIRECTORY,
    show_default=True,
    help="The directory of the gateway's state.",
)

gateway_option = click.option(
    "--gateway",
    metavar="HOST[:PORT]",
    help="By which address nodes and operators reach this gateway.  [default: what was said last]",
)


def require_extra() -> None:
    """Raise TproxyError when a package is missing."""
    if sys.modules.get("asyncssh", ...) is None or find_spec("asyncssh") is None:
        raise TproxyError("tunnels need more packages: pip install one-tproxy[inward]")


def address(store: Store, said: str | None) -> Address:
    """Return the gateway's address, and remember what was said. Raises TproxyError."""
    text = said or store.address
    if not text:
        raise TproxyError("nobody has said how nodes reach this gateway: --gateway HOST[:PORT]")
    found = address_of(text, 18000)
    if found is None:
        raise TproxyError(f"{text!a} is not HOST or HOST:PORT")
    if said:
        store.address = str(found)
    return found


def log_to_stderr() -> None:
    """Write the log of a process that stays to standard error, which is systemd's journal in a unit."""
    import logging

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

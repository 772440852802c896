"""log-level: shows or sets the log level of the running processes."""

from __future__ import annotations

import logging

import click

from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.daemon import client

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "configured": None,
}
_NAMES = {level: name for name, level in _LEVELS.items() if level is not None}


@click.command("log-level", epilog=example("tproxy log-level debug --for 600", "tproxy log-level configured"))
@click.argument("level", required=False, type=click.Choice([*_LEVELS]))
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Go back to the configured level after so long.",
)
def log_level(level: str | None, seconds: float | None) -> None:
    """Show or set the log level of daemon, relays, workers and watcher.

    The level counts until `tproxy log-level configured`, until the time is over, or until the daemon is
    replaced or ends, by `tproxy restart` for instance. Hooks and `tproxy reload` do not change it.
    """
    require_root()
    if seconds is not None and level in (None, "configured"):
        raise click.UsageError("--for needs a level")
    request: client.Json = {"op": "log_level"}
    if level is not None:
        request |= {"level": _LEVELS[level], "seconds": seconds}
    found = client.ask(request, client.PING_TIMEOUT)
    how = f"configured: {_name(found['configured'])}"
    if found["left"] is not None:
        how = f"for {found['left']:.0f} s, {how}"
    click.echo(f"{_name(found['level'])} ({how})")


def _name(level: int) -> str:
    return _NAMES.get(level, str(level))

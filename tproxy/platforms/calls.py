"""Calls of the hook for one event of a platform: each is tried, each failure is one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tproxy.console import say
from tproxy.errors import TproxyError
from tproxy.kernel import links
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.model import Network, check_interface_name
from tproxy.operations import hook

log = logging.getLogger(__name__)

MAX_LINE = 600  # characters; arbitrary


class Up(NamedTuple):
    bridge: str
    network: str

    def carry_out(self) -> None:
        hook.up(hook.Call(self.bridge, Network(self.network), debug=_debug()))


class Down(NamedTuple):
    """``gone``: ports that the guest may leave on the bridge for a moment, nobody's any more."""

    bridge: str
    gone: frozenset[str] = frozenset()

    def carry_out(self) -> None:
        # Platforms do not say which port leads off the host. `down` is sure only of named ones.
        uplinks = filter(links.leads_off_host, links.ports(self.bridge))
        _, guests = hook.down(hook.Call(self.bridge, uplinks=self.gone.union(uplinks), debug=_debug()))
        if guests:
            say(hook.left_alone(self.bridge, guests))


class Refusal(NamedTuple):
    """What is not served, and why: a line of the log, no failure."""

    reason: str


class Fault(NamedTuple):
    """What should be served and cannot be."""

    reason: str


Call = Up | Down | Refusal | Fault


def run(program: str, event: Callable[[], Iterable[Call]]) -> int:
    """Carry out what an event asks for; returns the exit code. Nothing is written to stdout."""
    output.to_file(output.DAEMON_LOG, DEFAULT_LEVEL)
    try:
        # An event asks once for each bridge, however many NICs a guest has there.
        wanted = list(dict.fromkeys(event()))
    except TproxyError as error:
        return _failed(program, str(error))
    except Exception as error:
        # The last resort: whatever a platform handed over, it gets a line.
        return _failed(program, f"internal error: {type(error).__name__}: {error}")
    faults = filter(None, [_carry_out(program, call) for call in wanted])
    # Once each: a fault of the configuration is every bridge's.
    return max((_failed(program, reason) for reason in dict.fromkeys(faults)), default=0)


def _carry_out(program: str, call: Call) -> str:
    """Returns what is wrong."""
    match call:
        case Refusal(reason):
            _tell(program, logging.WARNING, reason)
        case Fault(reason):
            return reason
        case Up() | Down():
            try:
                check_interface_name(call.bridge)
                call.carry_out()
            except TproxyError as error:
                return str(error)
            except Exception as error:
                # One bridge's trouble must not keep the others from their services.
                return f"bridge {call.bridge}: internal error: {type(error).__name__}: {error}"
    return ""


def _debug() -> bool:
    return bool(os.environ.get("TPROXY_DEBUG"))


def _failed(program: str, reason: str) -> int:
    _tell(program, logging.ERROR, reason)
    return 1


def _tell(program: str, level: int, reason: str) -> None:
    """On stderr, where platforms look when they fail, and in the log, for all the other times."""
    # Names from outside may hold anything, and be of any length.
    printable = "".join(c if c.isprintable() else " " for c in f"{program}: {reason}")
    line = " ".join(printable.split())[:MAX_LINE].encode("ascii", "backslashreplace").decode()
    output.to_file(output.DAEMON_LOG, DEFAULT_LEVEL)  # the hook sends warnings to stderr as well
    log.log(level, "%s", line)
    say(line)

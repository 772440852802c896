"""Carries out the hook calls of one platform event: all are tried, and each failure is one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tproxy.bridge.members import NO_NICS, Nics
from tproxy.console import say
from tproxy.errors import BadName, TproxyError
from tproxy.kernel import kinds, links
from tproxy.log import output
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.model import Network
from tproxy.names import check_interface_name, check_mac
from tproxy.operations import hook

log = logging.getLogger(__name__)

MAX_LINE = 600  # characters of a reported line; arbitrary


class Up(NamedTuple):
    """Provide services on a bridge, as ``tproxy hook up`` does."""

    bridge: str
    network: str
    nics: Nics = NO_NICS  # of the guest there

    def carry_out(self, *, debug: bool) -> None:
        hook.up(hook.Call(self.bridge, Network(self.network), debug=debug, nics=self.nics))


class Down(NamedTuple):
    """Remove the services of a bridge, unless other guests use it, as ``tproxy hook down`` does.

    ``gone`` names ports of the guest that ended: they can stay on the bridge for a moment, and do not count.
    """

    bridge: str
    gone: frozenset[str] = frozenset()
    nics: Nics = NO_NICS

    def carry_out(self, *, debug: bool) -> None:
        # Platforms do not say which ports are uplinks, and `down` takes each port that is not named for a
        # guest.
        bridge = links.real_name(self.bridge)
        uplinks = kinds.uplinks(bridge, links.ports(bridge))
        gone = self.gone.union(uplinks)
        _, guests = hook.down(hook.Call(self.bridge, uplinks=gone, debug=debug, nics=self.nics))
        if guests:
            say(hook.left_alone(self.bridge, guests))


class Refusal(NamedTuple):
    """A NIC or network that tproxy does not support: the reason is logged, and the event succeeds."""

    reason: str


class Fault(NamedTuple):
    """A NIC or network that should be served and cannot be: the reason is logged, and the event fails."""

    reason: str


Call = Up | Down | Refusal | Fault


def run(program: str, event: Callable[[], Iterable[Call]], *, debug: bool) -> int:
    """Carry out the calls that an event asks for; return the exit code. Nothing is written to stdout.

    ``program`` begins each line that is reported. ``event`` may raise TproxyError.
    """
    output.to_file(output.DAEMON_LOG, DEFAULT_LEVEL)
    try:
        wanted = _joined(event())
    except TproxyError as error:
        return _failed(program, str(error))
    except Exception as error:
        # The last resort: whatever a platform handed over, the operator gets one line.
        return _failed(program, f"internal error: {type(error).__name__}: {error}")
    faults = filter(None, [_carry_out(program, call, debug=debug) for call in wanted])
    # Each line once: an error in the configuration file is the same for every bridge.
    return max((_failed(program, reason) for reason in dict.fromkeys(faults)), default=0)


def macs_of(text: str | None) -> frozenset[str]:
    """Return the MAC address that a platform wrote, as a set; an empty set when there is none."""
    try:
        return frozenset({check_mac(text or "")})
    except BadName:
        return frozenset()


def nics_of(macs: frozenset[str], ports: Iterable[str]) -> Nics:
    """Return what a platform says of one NIC: its MAC, and the ports of the bridge behind which it can be."""
    return Nics(macs, frozenset((port, mac) for port in ports if _is_port(port) for mac in macs))


def _is_port(name: str) -> bool:
    try:
        return bool(check_interface_name(name))
    except BadName:
        return False


def _joined(found: Iterable[Call]) -> list[Call]:
    """Return the calls, with one call for all NICs of a guest that are in one network of one bridge."""
    joined: dict[Call, Nics] = {}
    for call in found:
        nics = call.nics if isinstance(call, Up | Down) else NO_NICS
        key = call._replace(nics=NO_NICS) if isinstance(call, Up | Down) else call
        before = joined.get(key, NO_NICS)
        joined[key] = Nics(before.macs | nics.macs, before.ports | nics.ports)
    return [
        each._replace(nics=nics) if isinstance(each, Up | Down) else each for each, nics in joined.items()
    ]


def _carry_out(program: str, call: Call, *, debug: bool) -> str:
    """Carry out one call; return the reason of a failure, or "" for none."""
    match call:
        case Refusal(reason):
            _tell(program, logging.WARNING, reason)
        case Fault(reason):
            return reason
        case Up() | Down():
            try:
                check_interface_name(call.bridge)
                call.carry_out(debug=debug)
            except TproxyError as error:
                return str(error)
            except Exception as error:
                # The other bridges get their services although this one failed.
                return f"bridge {call.bridge}: internal error: {type(error).__name__}: {error}"
    return ""


def _failed(program: str, reason: str) -> int:
    _tell(program, logging.ERROR, reason)
    return 1


def _tell(program: str, level: int, reason: str) -> None:
    """Report a line on stderr, which platforms show when a hook fails, and in the daemon's log."""
    # Names come from outside: they may hold any character and have any length.
    printable = "".join(c if c.isprintable() else " " for c in f"{program}: {reason}")
    line = " ".join(printable.split())[:MAX_LINE].encode("ascii", "backslashreplace").decode()
    output.to_file(
        output.DAEMON_LOG, DEFAULT_LEVEL
    )  # again, because a hook call sends warnings to stderr too
    log.log(level, "%s", line)
    say(line)

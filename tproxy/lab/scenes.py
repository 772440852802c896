"""Scenes of the lab's tour: what else services can do, each tried with a guest and checked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab import view
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor
from tproxy.lab.view import Shown

WHO_PORT = 5032
WHO_ENDPOINT = "10.11.12.14"
SPARE_PORT = 5033
UDP_PORT = 5034
FIRST, SECOND = "10.11.12.21", "10.11.12.22"

# For all networks.
ENTRIES = (
    f"- {{remote_addr: {WHO_ENDPOINT}, remote_port: {WHO_PORT}, proxy_protocol: v2}}\n"
    f"- {{remote_addr: {WHO_ENDPOINT}, remote_port: {UDP_PORT}, protocol: udp, proxy_protocol: v2}}\n"
    f"- {{remote_addr: [{FIRST}, {SECOND}], remote_port: {SPARE_PORT}}}\n"
)

_INSIDE = (sys.executable, "-m", "tproxy.lab.inside")

# Seconds until a datagram, or its answer, counts as lost.
_LOST = 2.0


def prepare(host: Hypervisor) -> None:
    """Add what the scenes need before the bridges are brought up."""
    host.add_endpoint(WHO_ENDPOINT, WHO_PORT, program=(*_INSIDE, "introduced"))
    host.add_endpoint(WHO_ENDPOINT, UDP_PORT, program=(*_INSIDE, "datagrams"))
    # Without an endpoint there, a dial is refused.
    host.ip(*(f"address replace {each}/32 dev lo" for each in (FIRST, SECOND)))


def play(host: Hypervisor, guests: Sequence[Guest]) -> bool:
    """Play all scenes; return whether all was as expected."""
    return all([_identity(guests), _datagrams(guests), _fail_over(host, guests[0])])


def _identity(guests: Sequence[Guest]) -> bool:
    def told(guest: Guest) -> Shown:
        return _shown(_name(guest), _known(guest), guest, WHO_PORT)

    return view.scene("An endpoint is told who is calling (proxy_protocol: v2):", [*map(told, guests)])


def _datagrams(guests: Sequence[Guest]) -> bool:
    def told(guest: Guest) -> Shown:
        wanted = _known(guest)
        return Shown(_name(guest), wanted, _await(wanted, lambda: _write(guest)))

    title = f"UDP works likewise (protocol: udp, {SERVICE_ADDRESS}:{UDP_PORT}). The answer to a datagram:"
    return view.scene(title, [*map(told, guests)])


def _write(guest: Guest) -> str:
    """Send a datagram; return the answer. Raises ProcessError."""
    done = guest.run(*_INSIDE, "write", SERVICE_ADDRESS, str(UDP_PORT), str(_LOST), check=False)
    if done.returncode:
        raise ProcessError(done.stderr.strip())
    return done.stdout


def _fail_over(host: Hypervisor, guest: Guest) -> bool:
    def state(label: str, wanted: str) -> Shown:
        return _shown(label, f"the {wanted}", guest, SPARE_PORT)

    first = host.add_endpoint(FIRST, SPARE_PORT, "the first")
    host.add_endpoint(SECOND, SPARE_PORT, "the second")
    shown = [state("two endpoints", "first")]
    first.kill()
    first.wait()
    shown.append(state("the first has ended", "second"))
    host.add_endpoint(FIRST, SPARE_PORT, "the first")
    shown.append(state("the first is back", "first"))
    return view.scene(
        f"A service with two endpoints ({SERVICE_ADDRESS}:{SPARE_PORT}). The answer comes from:", shown
    )


def _shown(label: str, wanted: str, guest: Guest, port: int) -> Shown:
    return Shown(label, wanted, _await(wanted, lambda: guest.get(SERVICE_ADDRESS, port)))


def _await(wanted: str, ask: Callable[[], str]) -> str:
    """Ask until the answer is the wanted one; return the last answer.

    The daemon hears of a guest's port, and a worker of an endpoint that is back, soon after it is there.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            got = ask()
        except ProcessError as error:
            got = str(error)
        if got == wanted or time.monotonic() > deadline:
            return got
        time.sleep(0.05)


def _name(guest: Guest) -> str:
    return f"guest {guest.name}, {guest.address}"


def _known(guest: Guest) -> str:
    """What an endpoint is told of a guest."""
    return f"network {guest.name}, MAC {_mac(guest)}, port {guest.port}"


def _mac(guest: Guest) -> str:
    return str(json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"])

"""The hook's command as drivers call it, what it can leave on a host, and what a guest gets afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.netns.ruleset import links
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

# The installed command, as drivers call it. It needs nothing from the environment.
TPROXY = Path(sys.executable).with_name("tproxy")
ARGUMENTS = "hook up --bridge br0 --config /run/tproxy.yaml"
UP = f"{TPROXY} {ARGUMENTS}"


def traces(host: Hypervisor) -> list[str]:
    """Return everything that a hook could have left on the host."""
    looks = (
        ("nft", "list", "ruleset"),
        ("find", "/run/netns", "-mindepth", "1", "-printf", "%p %y\n"),
        ("pgrep", "-af", "^one_tproxy|^tproxy-"),
    )
    return [links(host), *(host.run(*look, check=False).stdout for look in looks)]


def answer(host: Hypervisor) -> str:
    """Return the answer that a guest gets. It is added after the hook, because it makes /run/netns."""
    guest = host.add_guest("guest", "br0")
    return guest.get(SERVICE_ADDRESS, 5030)

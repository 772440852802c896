"""Listings of nft and ip, without what changes by itself."""

from __future__ import annotations

import re

from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Guest, Hypervisor


def lasting(listing: str) -> str:
    """Return a listing without the elements that expire: rules add those when guests talk to the service."""
    return re.sub(r"\n\s*elements = \{[^}]*\bexpires\b[^}]*\}", "", listing)


def links(host: Hypervisor) -> str:
    """Return the links of the host, without their operational state.

    The kernel determines that from a work queue (linkwatch), at most once a second.
    """
    listing = host.run("ip", "-o", "link").stdout
    return re.sub(r" state \w+|NO-CARRIER,|,LOWER_UP| qdisc \w+", "", listing)


def await_guarded(host: Hypervisor, *guests: Guest) -> None:
    """Wait until the guards know the ports of guests.

    Without ``meta ibrname`` guards match ports, and the daemon adds a new port some milliseconds later.
    """
    for _ in eventually():
        listing = host.run("nft", "list", "table", "bridge", "one_tproxy").stdout
        if "meta ibrname" in listing or all(f'"{each.port}" comment' in listing for each in guests):
            return

"""The addresses of this node, as they are now: nobody outside gets the proxy to ask what listens here."""

from __future__ import annotations

import socket

import psutil


def own_addresses() -> frozenset[str]:
    """Return all addresses of this network namespace's interfaces."""
    return frozenset(
        each.address.partition("%")[0]
        for found in psutil.net_if_addrs().values()
        for each in found
        if each.family in (socket.AF_INET, socket.AF_INET6)
    )

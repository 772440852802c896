"""Finds out who holds a port that the egress needs, before it starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import psutil

from tproxy.egress.policy.rules import Policy


def needed(policy: Policy) -> Iterator[tuple[str, str, int]]:
    """Yield all addresses and ports that the egress listens on, each with what it is for."""
    listen = policy.listen
    for port in listen.proxy:
        yield "proxy", listen.address, port
    yield "transparent", listen.address, listen.transparent
    yield "setup", listen.address, listen.setup
    yield "resolver", listen.address, listen.resolver
    yield "mirror", "127.0.0.1", listen.mirror
    yield "guests", "127.0.0.1", listen.guests
    if policy.clients:
        yield "clients", listen.clients_address, listen.clients
    if listen.hosts:
        yield "hosts", listen.hosts_address, listen.hosts


def taken(policy: Policy) -> list[str]:
    """Return a line for each port that another program holds, with the name of that program."""
    return [
        f"port {port} at {address} ({what}) is taken by {_holder(port)}: "
        "end that, or choose another port under listen: in the policy"
        for what, address, port in needed(policy)
        if not is_free(address, port)
    ]


def is_free(address: str, port: int) -> bool:
    """Return whether nobody listens there."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
            try:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
            except psutil.NoSuchProcess:
                break
    return "a program that cannot be seen from here"

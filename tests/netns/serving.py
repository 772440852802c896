"""The bridges of a stand-in that are served: each has namespace, veth, map and relay."""

from __future__ import annotations

from contextlib import suppress

from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


def served(host: Hypervisor) -> list[str]:
    """Return the bridges that are served. Fails when a bridge has only a part of what it needs."""
    relays = host.run("pgrep", "-af", "^one_tproxy_", check=False).stdout.splitlines()
    bridges = sorted(relay.split()[1].removeprefix("one_tproxy_") for relay in relays)
    names = host.run("find", "/run/netns", "-name", "one_tproxy_*", "-printf", "%f ", check=False).stdout
    assert sorted(names.split()) == [f"one_tproxy_{bridge}" for bridge in bridges]
    tables = host.run("nft", "list", "tables").stdout
    maps = host.run("nft", "list", "table", "ip", "one_tproxy").stdout if "ip one_tproxy" in tables else ""
    assert sorted(line.split()[1] for line in maps.splitlines() if line.startswith("\tmap ")) == [
        f"ep_{bridge}" for bridge in bridges
    ]
    links = host.run("ip", "-br", "link", "show", "type", "veth").stdout
    assert all(f"{bridge}b@" in links for bridge in bridges)
    if not bridges:
        assert "one_tproxy" not in tables
        assert "b@" not in links
    return bridges


def await_served(host: Hypervisor, *bridges: str) -> None:
    """Wait until exactly these bridges are served."""
    for _ in eventually():
        with suppress(AssertionError):
            if served(host) == list(bridges):
                return

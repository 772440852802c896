"""The text that we load into nftables, with the installed nftables: what was loaded is what is there."""

from __future__ import annotations

import pytest

from tests.netns.program import program
from tproxy.lab.hypervisor import Hypervisor


@pytest.mark.parametrize("seed", range(6))
def test_random_changes_leave_exactly_what_was_loaded(hypervisor: Hypervisor, seed: int) -> None:
    hypervisor.run(*program("nftables_walk", str(seed)), timeout=250)


def test_nft_can_save_our_tables_and_load_them_again(hypervisor: Hypervisor) -> None:
    """As ``nft list ruleset >file`` and a restore at boot do, or a firewall manager."""
    hypervisor.add_bridge("br0")
    entry = "{service_port: 5030, remote_addr: 10.11.12.13, remote_port: 1, name: web, connect_timeout: 1.5}"
    config = hypervisor.write("/run/tproxy.yaml", f"tproxy: [{entry}]\n")
    up = ("hook", "up", "--bridge", "br0", "--network", "b l;u\"e'", "--uplink", "eth9", "--config", config)
    hypervisor.tproxy(*up)
    before = hypervisor.run("nft", "list", "ruleset").stdout
    hypervisor.write("/run/saved.nft", "flush ruleset\n" + before)
    hypervisor.run("nft", "-f", "/run/saved.nft")
    assert hypervisor.run("nft", "list", "ruleset").stdout == before
    handles = hypervisor.run("nft", "-a", "list", "ruleset").stdout
    hypervisor.tproxy(*up)
    assert hypervisor.run("nft", "-a", "list", "ruleset").stdout == handles, (
        "the hook took them for its own, and changed nothing"
    )

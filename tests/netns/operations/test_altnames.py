"""Links that are named by an alternative name (altname), and uplinks that are not where they should be."""

from __future__ import annotations

import pytest

from tests.netns.operations.test_hook import CONFIG, assert_nothing_left, down, up
from tproxy.lab.hypervisor import Hypervisor

LONG = "enp0s31f6-the-card-on-the-board"  # systemd gives such names, which are too long for a name


@pytest.fixture
def config(hypervisor: Hypervisor) -> str:
    hypervisor.add_bridge("br0")
    hypervisor.ip(
        "link property add dev br0 altname onebr7",
        "link add up0 type veth peer name far0",
        "link set up0 master br0 up",
        "link property add dev up0 altname lan0",
        f"link property add dev up0 altname {LONG}",
    )
    return hypervisor.write("/run/tproxy.yaml", CONFIG)


@pytest.mark.parametrize("uplink", ["lan0", LONG])
def test_everything_is_stored_under_the_real_names(hypervisor: Hypervisor, config: str, uplink: str) -> None:
    dry = up(hypervisor, "onebr7", config, "--uplink", uplink, "--dry-run")
    assert "create namespace one_tproxy_br0" in dry.stdout
    assert up(hypervisor, "onebr7", config, "--uplink", uplink).stderr == ""
    assert hypervisor.run("ip", "netns", "list").stdout.split()[0] == "one_tproxy_br0"
    ruleset = hypervisor.run("nft", "list", "ruleset").stdout
    assert '"up0" comment "bridge=br0 named=yes"' in ruleset
    assert "onebr7" not in ruleset
    assert uplink not in ruleset
    assert up(hypervisor, "br0", config, "--uplink", "up0", "--dry-run").stdout == ""
    assert down(hypervisor, "onebr7", "--uplink", uplink).stderr == ""
    assert_nothing_left(hypervisor)


def test_the_bridge_of_down_may_be_gone_and_its_name_may_be_another_links(
    hypervisor: Hypervisor, config: str
) -> None:
    up(hypervisor, "br0", config)
    hypervisor.ip("link del br0", "link property add dev up0 altname br0")
    assert down(hypervisor, "br0").stderr == ""
    assert_nothing_left(hypervisor)


def test_an_alternative_name_of_no_bridge_is_refused_under_the_links_real_name(
    hypervisor: Hypervisor, config: str
) -> None:
    done = up(hypervisor, "lan0", config, check=False)
    assert (done.returncode, done.stderr) == (1, "tproxy: up0 is not a bridge\n")


def test_up_warns_of_named_uplinks_that_are_no_port_of_the_bridge(
    hypervisor: Hypervisor, config: str
) -> None:
    done = up(hypervisor, "br0", config, *("--uplink", "up0", "--uplink", "far0", "--uplink", "eth9"))
    assert done.stderr.splitlines() == [
        "tproxy: bridge br0: the uplink eth9 does not exist",
        "tproxy: bridge br0: the uplink far0 is not a port of the bridge",
    ]
    # They are stored: they may become ports later.
    ruleset = hypervisor.run("nft", "list", "ruleset").stdout
    for name in ("up0", "far0", "eth9"):
        assert f'"{name}" comment "bridge=br0 named=yes"' in ruleset

"""A real guest, from power-on to power-off: it reaches its service, and nothing else.

The hypervisor is a stand-in, and QEMU runs in its network namespace. The tests handle tap, bridge and hook
as a network driver does.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.netns.waiting import eventually
from tests.vm.guest import GuestMachine, Result
from tests.vm.machine import Kernel
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.lab.hypervisor import Hypervisor

# Seconds: more than a machine is given.
pytestmark = pytest.mark.timeout(300)

ENDPOINT = "10.11.12.13"
SERVICE = f"http://{SERVICE_ADDRESS}:5030/"

# Longer than a segment, a pipe and any buffer on the way.
BODY = "".join(f"line {number}: the answer of the endpoint\n" for number in range(3000))


class Driver:
    """A network driver's part: taps of a bridge, and calls of our hook."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.before = traces(host)
        self.config = host.write(
            "/run/tproxy.yaml",
            f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
        )

    def attach(self, tap: str, bridge: str = "br0") -> None:
        self.host.ip(f"tuntap add dev {tap} mode tap", f"link set dev {tap} master {bridge} up")

    def detach(self, tap: str) -> None:
        self.host.ip(f"link del dev {tap}")

    def hook(self, verb: str) -> None:
        config = ("--config", self.config) if verb == "up" else ()
        done = self.host.tproxy("hook", verb, "--bridge", "br0", *config, check=False)
        assert done.returncode in ((0, EXIT_IN_USE) if verb == "down" else (0,)), done.stderr


def traces(host: Hypervisor) -> dict[str, str]:
    """Return everything that the hook can have left on a host."""
    looks = {
        "links": ("ip", "-brief", "link", "show", "type", "veth"),
        "namespaces": ("ip", "netns", "list"),
        "nftables": ("nft", "list", "ruleset"),
    }
    return {name: host.run(*look).stdout for name, look in looks.items()} | {
        "processes": host.tproxy("status").stdout
    }


@pytest.fixture
def driver(hypervisor: Hypervisor) -> Driver:
    hypervisor.add_bridge("br0")
    neighbour = hypervisor.add_guest("neighbour", "br0", "10.0.0.1/24")
    hypervisor.add_endpoint(neighbour.address, 80, "neighbour", netns=neighbour.name)
    hypervisor.add_endpoint(ENDPOINT, 8080, BODY)
    return Driver(hypervisor)


def run(driver: Driver, kernel: Kernel, where: Path, script: str) -> dict[str, Result]:
    """Run a guest from start to end, with what a driver does before and after."""
    driver.hook("up")
    driver.attach("tap0")
    results = GuestMachine(driver.host, kernel, where, "tap0", script).results()
    driver.detach("tap0")
    return results


FETCH = f"""
say fetch wget -q -O /body {SERVICE}
say sum sha256sum /body
"""


def fetched_well(results: dict[str, Result]) -> bool:
    return (results["fetch"].status, results["sum"].output.split()[:1]) == (
        0,
        [hashlib.sha256(BODY.encode()).hexdigest()],
    )


def test_a_guest_with_a_route_for_the_service_reaches_it_and_nothing_else(
    driver: Driver, guest_kernel: Kernel, tmp_path: Path
) -> None:
    assert driver.host.get(ENDPOINT, 8080) == BODY
    results = run(
        driver,
        guest_kernel,
        tmp_path,
        f"""
ip address add 10.0.0.5/24 dev eth0
ip route add {SERVICE_ADDRESS} dev eth0
{FETCH}
say neighbour wget -q -O - http://10.0.0.1/
patience=3
# The only way out that a guest could try.
ip route add default via {SERVICE_ADDRESS} dev eth0 onlink
say other_port wget -q -O - http://{SERVICE_ADDRESS}:5031/
say endpoint wget -q -O - http://{ENDPOINT}:8080/
say ping ping -c 2 {ENDPOINT}
say loopback wget -q -O - http://127.0.0.1:8080/
say again wget -q -O /body {SERVICE}
""",
    )
    assert fetched_well(results)
    assert results["neighbour"] == (0, "neighbour"), "the guest's network works"
    assert results["again"].status == 0, "it still works at the end"
    for name in ("other_port", "endpoint", "loopback"):
        assert results[name].status != 0, name
        assert results[name].output == "", name
    assert results["ping"].status != 0


def test_a_guest_with_only_a_default_gateway_reaches_the_service(
    driver: Driver, guest_kernel: Kernel, tmp_path: Path
) -> None:
    results = run(
        driver,
        guest_kernel,
        tmp_path,
        f"""
ip address add 10.0.0.5/24 dev eth0
ip route add default via 10.0.0.1
{FETCH}
say cache ip neighbour
""",
    )
    assert fetched_well(results)
    assert SERVICE_ADDRESS not in results["cache"].output, (
        "the guest sent to its gateway, and asked for no other MAC"
    )


def test_down_removes_everything_when_the_last_guest_is_gone(
    driver: Driver, guest_kernel: Kernel, tmp_path: Path
) -> None:
    results = run(
        driver,
        guest_kernel,
        tmp_path,
        f"ip address add 10.0.0.5/24 dev eth0\nip route add {SERVICE_ADDRESS} dev eth0\n{FETCH}",
    )
    assert fetched_well(results)
    log = driver.host.path("/var/log/one_tproxy.log")
    for _ in eventually():  # the daemon logs a connection some time after its last segment
        if "10.0.0.5" in log.read_text():
            break
    driver.hook("down")
    assert "one_tproxy_br0" in traces(driver.host)["namespaces"], (
        "the neighbour is still a guest of the bridge"
    )
    driver.host.ip("link del vnet0")
    driver.hook("down")
    after = traces(driver.host)
    assert after.pop("links") == ""
    driver.before.pop("links")
    assert after == driver.before


def test_the_watcher_brings_a_bridge_up_while_a_guest_is_there(
    driver: Driver, guest_kernel: Kernel, tmp_path: Path
) -> None:
    host = driver.host
    host.add_bridge("br1")
    config = host.write(
        "/run/watch.yaml",
        f"tproxy_watch_grace: 2\ntproxy_bridges: [{{bridge: br1}}]\n"
        f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
    )
    host.popen(sys.executable, "-m", "tproxy", "watch", "--config", config)
    log = host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if log.exists() and "watching bridges" in log.read_text():
            break
    assert traces(host)["namespaces"] == driver.before["namespaces"], "there is no guest yet"
    driver.attach("tap1", "br1")
    script = f"ip address add 10.0.0.5/24 dev eth0\nip route add {SERVICE_ADDRESS} dev eth0\n{FETCH}"
    results = GuestMachine(host, guest_kernel, tmp_path, "tap1", script).results()
    assert fetched_well(results)
    assert "one_tproxy_br1" in host.tproxy("status").stdout, "the bridge stays up as long as the tap is there"
    driver.detach("tap1")
    for _ in eventually():
        if traces(host)["namespaces"] == driver.before["namespaces"]:
            break
    assert "one_tproxy_br1" not in host.tproxy("status").stdout

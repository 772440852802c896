"""Vagrant's test bed without Vagrant: its three machines, set up by its script, on emulated networks.

The hook runs on machines, not on stand-ins: each has its own process 1, /run and /var/log, and a network card
as the uplink.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.vm.host import HostMachine, Outcome
from tests.vm.machine import Kernel, network_card
from tproxy.lab.hypervisor import Hypervisor

MINUTES = 12
pytestmark = pytest.mark.timeout(MINUTES * 60 + 60)

# The module that udev would load. The kernel loads all others when they are needed, as on users' hosts.
MODULES = ("virtio_net",)

FRONT_END = "192.168.56.10"
ADDRESS = {"front-end": FRONT_END, "hypervisor1": "192.168.56.11", "hypervisor2": "192.168.56.12"}
GUEST = {"hypervisor1": "10.0.0.11", "hypervisor2": "10.0.0.12"}
UPLINK = {"hypervisor1": "02:00:00:00:00:11", "hypervisor2": "02:00:00:00:00:12"}

# Machines wait for each other by files in the directory that they share.
_COMMON = """
set -e
meet() {{ touch /run/results/{name}.$1; shift
    for each; do until [ -e /run/results/$each ]; do sleep 1; done; done; }}
ip address add {address}/24 dev eth0
ip link set eth0 up
"""

_FRONT_END = """
vagrant/provision.sh front-end
vagrant/provision.sh front-end
meet serves hypervisor1.status hypervisor2.status
echo @log; cat /var/log/front-end.log
"""

_HYPERVISOR = """
meet starts front-end.serves
for time in first second; do
    echo "@setup $time"
    vagrant/provision.sh hypervisor {front_end} {uplink} {guest}/24
done
echo @fetched; ip netns exec guest busybox wget -q -O - http://169.254.16.9:5030/
meet ready {other}.ready
echo @ping; ip netns exec guest ping -c 1 -W 60 {neighbour}
echo @fetched-again; ip netns exec guest busybox wget -q -O - http://169.254.16.9:5030/
echo @status; tproxy status
echo @guards; nft list table bridge one_tproxy
meet asked {other}.asked
echo @down; tproxy hook down --bridge br0 --force
tproxy status; nft list tables; ls /run/netns
echo @end
"""


def parts(outcome: Outcome) -> dict[str, str]:
    """Return what was printed after each ``@mark``."""
    words = re.split(r"^@([\w-]+)(.*)$", outcome.output, flags=re.MULTILINE)
    return {mark: text.strip() for mark, text in zip(words[1::3], words[3::3], strict=True)}


def test_guests_of_the_two_hypervisors_reach_the_service_and_each_other(
    hypervisor: Hypervisor, host_kernel: Kernel, tmp_path: Path
) -> None:
    """The stand-in is the cables: it has a bridge for the hosts' network, and one for the guests'."""
    for bridge in ("hosts", "guests"):
        hypervisor.add_bridge(bridge)
    machines: dict[str, tuple[HostMachine, subprocess.Popen[str]]] = {}
    for number, (name, address) in enumerate(ADDRESS.items()):
        cards = network_card(plug(hypervisor, "hosts", number), f"02:00:00:00:01:1{number}")
        script = _COMMON + _FRONT_END
        if name in GUEST:
            cards += network_card(plug(hypervisor, "guests", number), UPLINK[name], 1)
            script = _COMMON + _HYPERVISOR
        (other,) = GUEST.keys() - {name} if name in GUEST else ("",)
        script = script.format(
            name=name,
            address=address,
            front_end=FRONT_END,
            uplink=UPLINK.get(name),
            guest=GUEST.get(name),
            other=other,
            neighbour=GUEST.get(other),
        )
        host = HostMachine(host_kernel, tmp_path, name)
        command = host.command(["bash", "-c", script], MODULES, MINUTES * 60, cards, memory=768)
        process = hypervisor.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        machines[name] = host, process
    outcomes = {name: host.outcome(process.communicate()[0]) for name, (host, process) in machines.items()}
    for name, outcome in outcomes.items():
        print(f"=== {name} {outcome}")
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(ADDRESS, 0)

    log = parts(outcomes["front-end"])["log"]
    for name in GUEST:
        said = parts(outcomes[name])
        assert said["fetched"] == said["fetched-again"] == "the front-end of front-end"
        assert log.count(f"{ADDRESS[name]} - - ") == 2, "each guest's own hypervisor asks for it"
        assert "1 received" in said["ping"], "the guests are on one layer 2"
        assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+", said["status"])
        assert 'elements = { "eth1" comment "bridge=br0" }' in said["guards"], "the card is known as uplink"
        assert said["down"] == "guest", "nothing else is left"


def plug(hypervisor: Hypervisor, bridge: str, number: int) -> str:
    """Return a new tap on a bridge of the stand-in."""
    tap = f"{bridge}{number}"
    hypervisor.ip(f"tuntap add dev {tap} mode tap", f"link set dev {tap} master {bridge} up")
    return tap

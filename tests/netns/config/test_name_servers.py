"""Endpoints that have a name: how the hook looks it up, and what it does when no name server answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.contract import furnish
from tests.netns.etc import private_etc
from tests.netns.operations.test_hook import CONFIG, ENDPOINT
from tests.netns.program import program
from tests.netns.surroundings import TPROXY, UP, answer
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


def test_entries_are_skipped_while_no_name_server_answers(host: Hypervisor, blackhole: str) -> None:
    names = "".join(f"- {{remote_addr: host{n}.example, remote_port: {n}}}\n" for n in range(1, 9))
    host.write("/run/tproxy.yaml", CONFIG + names)
    dead = f"nameserver {blackhole}\noptions timeout:1 attempts:1\n"
    private_etc(host, resolv_conf=dead, nsswitch_conf="hosts: dns\n")
    assert host.run("sh", "-c", UP).stderr.count("does not resolve") == 8
    assert answer(host) == "hello"


def test_all_names_are_looked_up_at_the_same_time(host: Hypervisor) -> None:
    names = "".join(f"- {{remote_addr: host{n}.example, remote_port: {n}}}\n" for n in range(1, 9))
    host.write("/run/tproxy.yaml", CONFIG + names)
    host.add_endpoint("10.11.12.53", 53, program=program("patient_name_server", "8"))
    patient = "nameserver 10.11.12.53\noptions timeout:30 attempts:1\n"
    private_etc(host, resolv_conf=patient, nsswitch_conf="hosts: dns\n")
    assert host.run("sh", "-c", UP).stderr == ""
    services = host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br0").stdout
    assert services.count(f" : {ENDPOINT} . ") == 1 + 8


@pytest.fixture
def known_hosts(host: Hypervisor, blackhole: str) -> Path:
    """The /etc/hosts of a stand-in; for names that are not in it no name server answers."""
    dead = f"nameserver {blackhole}\noptions timeout:1 attempts:1\n"
    hosts = f"{ENDPOINT} api.example\n"
    private_etc(host, hosts=hosts, resolv_conf=dead, nsswitch_conf="hosts: files dns\n")
    return host.path("/etc/hosts")


def test_guests_keep_a_service_by_name_while_no_name_server_answers(
    host: Hypervisor, known_hosts: Path
) -> None:
    entry = "- {service_port: 5030, remote_addr: api.example, remote_port: 8080}\n"
    host.write("/run/tproxy.yaml", f"tproxy:\n- {{remote_addr: {ENDPOINT}, remote_port: 22}}\n{entry}")
    assert host.run("sh", "-c", f"{UP} --network vnet1").stderr == ""
    guest = host.add_guest("guest", "br0")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    known_hosts.write_text("")
    for command in (f"{UP} --network vnet1", f"{TPROXY} refresh --config /run/tproxy.yaml"):
        said = host.run("sh", "-c", command).stderr
        assert said.endswith(f"Temporary failure in name resolution: {ENDPOINT}:8080 as before\n")
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"


@pytest.mark.parametrize("network", ["vnet2", "v" * 200])
def test_while_no_name_server_answers_no_network_gets_a_service_of_another(
    host: Hypervisor, known_hosts: Path, network: str
) -> None:
    entries = "".join(
        f"- {{service_port: 5030, remote_addr: {name}, remote_port: 8080, networks: [{each}]}}\n"
        for name, each in (("api.example", "vnet1"), ("other.example", network))
    )
    own = f"- {{service_port: 5031, remote_addr: {ENDPOINT}, remote_port: 8080}}\n"
    host.write("/run/tproxy.yaml", f"tproxy:\n{entries}{own}")
    up = f"{UP} --mac 52:54:00:00:00:01"  # always the same guest, so its former network has none left
    host.run("sh", "-c", f"{up} --network vnet1")
    guest = host.add_guest("guest", "br0")
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    known_hosts.write_text("")
    assert "entry skipped" in host.run("sh", "-c", f"{up} --network {network}").stderr
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        guest.get(SERVICE_ADDRESS, 5030)
    assert guest.get(SERVICE_ADDRESS, 5031) == "hello"

    known_hosts.write_text(f"{ENDPOINT} other.example\n")
    host.run("sh", "-c", f"{up} --network {network}")
    known_hosts.write_text("")
    assert "as before" in host.run("sh", "-c", f"{up} --network {network}").stderr
    assert guest.get(SERVICE_ADDRESS, 5030) == "hello"

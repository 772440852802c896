"""Several networks on one bridge, as docs/contract.md says under that heading."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.netns.program import program
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
CONFIG = f"""
tproxy:
- {{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8080, networks: [blue]}}
- {{service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8081, networks: [red]}}
- {{service_port: 81, remote_addr: {ENDPOINT}, remote_port: 8081, networks: [red]}}
- {{service_port: 82, remote_addr: {ENDPOINT}, remote_port: 8080}}
"""
ONE, TWO, THREE = "02:00:0a:00:00:01", "02:00:0a:00:00:02", "02:00:0a:00:00:03"


class Bridge:
    """Bridge br0 with one guest, whose MAC is ONE. Endpoints answer ``one`` at port 8080, ``two`` at 8081."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        self.guest.ip(f"link set eth0 address {ONE}")
        host.add_endpoint(ENDPOINT, 8080, "one")
        host.add_endpoint(ENDPOINT, 8081, "two")
        host.write(FILE, CONFIG)

    def up(self, network: str, *macs: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        named = ("--network", network) if network else ()
        options = (*named, *(f"--mac={mac}" for mac in macs), "--config", FILE, *more)
        return self.host.tproxy("hook", "up", "--bridge", "br0", *options)

    def down(self, *macs: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        options = (*(f"--mac={mac}" for mac in macs), "--config", FILE, *more)
        return self.host.tproxy("hook", "down", "--bridge", "br0", *options, check=False)

    def services(self) -> dict[str, int]:
        """Return each endpoint's port in nftables, by service port, or by service port and network (80@1)."""
        listed = json.loads(self.host.run("nft", "-j", "list", "table", "ip", "one_tproxy").stdout)
        maps = {each["map"]["name"]: each["map"] for each in listed["nftables"] if "map" in each}
        plain = maps["ep_br0"].get("elem", [])
        found = {str(left): right["concat"][1] for left, right in plain}
        for left, right in maps.get("sv_br0", {}).get("elem", []):
            _, _, port, network = left["concat"]
            found[f"{port}@{network}"] = right["concat"][1]
        return found

    def cards(self) -> set[tuple[str, str]]:
        listed = json.loads(self.host.run("nft", "-j", "list", "set", "ip", "one_tproxy", "pt_br0").stdout)
        return {tuple(each["concat"]) for each in listed["nftables"][1]["set"]["elem"]}

    def nft(self) -> str:
        return self.host.run("nft", "list", "table", "ip", "one_tproxy").stdout

    def networks(self) -> list[str]:
        answer = json.loads(self.host.tproxy("status", "--json").stdout)
        return [each["name"] for each in answer["daemon"]["bridges"]["br0"]["networks"]]

    def ask(self, port: int) -> str:
        return self.guest.get(SERVICE_ADDRESS, port)


BLUE = {"80": 8080, "82": 8080}
RED = {"80": 8081, "81": 8081, "82": 8080}
BLUE_THEN_RED = {"80@1": 8080, "80@2": 8081, "81@2": 8081, "82": 8080}


@pytest.fixture
def bridge(hypervisor: Hypervisor) -> Bridge:
    return Bridge(hypervisor)


def test_each_network_of_the_bridge_has_its_services(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    assert bridge.services() == BLUE
    bridge.up("red", TWO)
    assert bridge.services() == BLUE_THEN_RED
    assert [bridge.ask(80), bridge.ask(82)] == ["one", "one"]
    assert bridge.networks() == ["blue", "red"]
    bridge.up("red", ONE)
    assert [bridge.ask(80), bridge.ask(81), bridge.ask(82)] == ["two", "two", "one"]


def test_hooks_that_name_all_guests_cause_no_warning(bridge: Bridge) -> None:
    assert bridge.up("blue", ONE).stderr == bridge.up("red", TWO).stderr == ""
    assert bridge.host.tproxy("refresh", "--config", FILE).stderr == ""


def test_a_warning_names_the_network_whose_guests_no_hook_named(bridge: Bridge) -> None:
    assert bridge.up("blue").stderr == ""
    said = bridge.up("red", TWO).stderr
    assert said.count("\n") == 1
    assert (
        "bridge br0: its networks have different services (network 'blue', network 'red'), and no hook"
        in said
    )
    assert "no hook named MAC or port of guests of network 'blue': they get only the services" in said
    log = bridge.host.path("/var/log/one_tproxy.log").read_text()
    assert said.removeprefix("tproxy: ").strip() in log
    assert bridge.up("red", TWO).stderr == bridge.up("red", THREE).stderr == ""
    assert "no hook named MAC" in bridge.host.tproxy("refresh", "--config", FILE).stderr


def test_networks_with_the_same_services_cause_no_warning(bridge: Bridge) -> None:
    bridge.up("grey", ONE)
    assert bridge.up("green", TWO).stderr == ""
    assert bridge.networks() == ["grey", "green"]


def test_the_last_guest_of_a_network_takes_its_services_along(bridge: Bridge) -> None:
    bridge.up("red", ONE)
    bridge.up("blue", TWO)
    bridge.up("red", THREE)
    both = {"80@1": 8081, "80@2": 8080, "81@1": 8081, "82": 8080}
    assert bridge.services() == both
    assert bridge.down(ONE).returncode == EXIT_IN_USE
    assert bridge.services() == both
    bridge.down(THREE)
    assert bridge.services() == BLUE
    assert bridge.ask(80) == "one"
    assert bridge.networks() == ["blue"]
    bridge.up("red", ONE)
    assert bridge.services() == {"80@2": 8080, "80@3": 8081, "81@3": 8081, "82": 8080}


def test_a_vm_with_cards_on_two_networks_counts_for_both(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.up("red", TWO)
    bridge.down(ONE)  # one card is detached
    assert bridge.services() == RED
    bridge.up("blue", ONE)
    bridge.down(ONE, TWO)  # the VM ends; another guest is attached, of which nothing is known
    assert bridge.services() == RED  # red is the first one now
    bridge.up("blue", THREE)
    assert bridge.services() == BLUE


def test_ports_are_named_with_the_mac_before_them(bridge: Bridge) -> None:
    bridge.up("blue", ONE, more=("--port", "vnet7", f"--mac={TWO}", "--port=vnet8"))
    assert bridge.cards() == {("vnet7", ONE), ("vnet8", TWO)}
    bridge.up("blue", TWO, more=("--port", "vnet9"))  # it moved
    assert bridge.cards() == {("vnet7", ONE), ("vnet9", TWO)}
    bridge.up("blue", THREE, more=("--port", "vnet7"))  # another guest has this port now
    assert bridge.cards() == {("vnet7", THREE), ("vnet9", TWO)}
    bridge.up("blue", TWO)  # nothing is known of its port now
    assert bridge.cards() == {("vnet7", THREE)}
    bridge.down(THREE)
    assert "pt_br0" not in bridge.nft()


def test_down_for_a_port_is_for_the_guest_behind_it(bridge: Bridge) -> None:
    bridge.up("blue", ONE, more=("--port", "vnet7"))
    bridge.up("red", TWO, more=("--port", "vnet8"))
    bridge.down(more=("--port", "vnet7"))
    assert bridge.cards() == {("vnet8", TWO)}
    assert bridge.services() == RED


def test_a_set_of_ports_of_another_type_makes_up_fail(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.host.run("nft", "add set ip one_tproxy pt_br0 { type ifname; }")
    options = ("--network", "red", "--mac", TWO, "--config", FILE)
    done = bridge.host.tproxy("hook", "up", "--bridge", "br0", *options, check=False)
    assert done.returncode == 1
    assert "set pt_br0 is not of type ifname . ether_addr" in done.stderr


@pytest.mark.parametrize("port", ["", "a/b", "x" * 16])
def test_what_is_no_port_is_a_wrong_command_line(bridge: Bridge, port: str) -> None:
    done = bridge.host.tproxy("hook", "up", "--bridge", "br0", f"--port={port}", check=False)
    assert done.returncode == 2
    assert "port name" in done.stderr


def test_a_guest_that_comes_for_another_network_leaves_the_former_one(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.up("red", ONE)
    assert bridge.services() == RED


def test_a_network_of_hooks_without_macs_stays_until_the_bridge_is_taken_down(bridge: Bridge) -> None:
    bridge.up("blue")
    bridge.up("red", TWO)
    bridge.down(more=("--network", "blue"))
    assert bridge.services() == BLUE_THEN_RED
    bridge.down(TWO)
    assert bridge.services() == BLUE
    bridge.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert bridge.host.run("nft", "list", "ruleset").stdout == ""
    bridge.up("red", TWO)
    assert bridge.services() == RED


def test_a_hook_that_names_no_network_changes_none(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    before = bridge.nft()
    bridge.up("")
    assert bridge.nft() == before


def test_guests_that_a_former_version_brought_up_keep_their_services(bridge: Bridge) -> None:
    bridge.up("blue")
    bridge.host.run("nft", "delete set ip one_tproxy gu_br0")
    bridge.up("red", TWO)
    assert bridge.services() == BLUE_THEN_RED


def test_down_with_a_broken_file_leaves_the_services_until_the_next_up(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.up("red", TWO)
    bridge.host.write(FILE, "tproxy: 7\n")
    done = bridge.down(ONE)
    assert done.returncode == EXIT_IN_USE
    assert "no service of guests that are left is changed" in done.stderr
    assert bridge.services() == BLUE_THEN_RED
    assert "no service" not in bridge.down(ONE).stderr  # it needs no file
    bridge.host.write(FILE, CONFIG)
    bridge.up("red", TWO)
    assert bridge.services() == RED


def test_a_guest_of_a_network_without_services_is_noted_where_others_have_some(bridge: Bridge) -> None:
    bridge.host.write(FILE, CONFIG.replace("- {service_port: 82", "# {"))
    bridge.up("grey", THREE)
    assert bridge.host.run("nft", "list", "ruleset").stdout == ""
    bridge.up("blue", ONE)
    bridge.up("grey", THREE)
    assert bridge.services() == {"80@1": 8080}  # grey has no such service
    assert bridge.ask(80) == "one"
    bridge.down(ONE)
    assert bridge.services() == {}


def test_a_dry_run_says_what_networks_would_get_and_changes_nothing(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    before = bridge.nft()
    done = bridge.up("red", TWO, more=("--dry-run",))
    assert done.stdout.splitlines() == [
        "load service map of br0",
        f"port 80@1 leads to {ENDPOINT}:8080",
        f"port 80@2 leads to {ENDPOINT}:8081",
        f"port 81@2 leads to {ENDPOINT}:8081",
        "port 80 is gone",
    ]
    assert bridge.nft() == before
    bridge.up("red", TWO)
    before = bridge.nft()
    assert bridge.up("red", TWO, more=("--dry-run",)).stdout == ""
    assert bridge.down(ONE, more=("--dry-run",)).stdout.splitlines() == [
        "load service map of br0",
        f"port 80 leads to {ENDPOINT}:8081",
        f"port 81 leads to {ENDPOINT}:8081",
        *(f"port {each} is gone" for each in ("80@1", "80@2", "81@2")),
    ]
    assert bridge.nft() == before


def test_refresh_gives_each_network_what_the_file_says_now(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.up("red", TWO)
    members = bridge.host.run("nft", "list", "set", "ip", "one_tproxy", "gu_br0").stdout
    bridge.host.write(FILE, CONFIG.replace("service_port: 81", "service_port: 91"))
    done = bridge.host.tproxy("refresh", "--config", FILE)
    assert "bridges changed 1, unchanged 0" in done.stdout
    assert bridge.services() == {"80@1": 8080, "80@2": 8081, "91@2": 8081, "82": 8080}
    assert bridge.host.run("nft", "list", "set", "ip", "one_tproxy", "gu_br0").stdout == members


def test_a_failed_up_leaves_map_and_members_as_they_were(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    before = bridge.nft()
    bridge.host.add_endpoint(SERVICE_ADDRESS, 81, "squatter", netns="one_tproxy_br0")
    options = ("--network", "red", "--mac", TWO, "--config", FILE)
    assert bridge.host.tproxy("hook", "up", "--bridge", "br0", *options, check=False).returncode == 1
    assert bridge.nft() == before


def test_a_warm_hook_with_many_members_changes_nothing(bridge: Bridge) -> None:
    macs = [f"02:00:0a:01:{number // 256:02x}:{number % 256:02x}" for number in range(500)]
    bridge.up("blue", *macs)
    before = bridge.nft()
    assert before.count("02:00:0a:01") == 500
    assert bridge.up("blue", macs[7]).stderr == ""
    assert bridge.nft() == before


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.8, 0.9, 0.97])
def test_the_next_hook_completes_one_that_was_killed(bridge: Bridge, share: float) -> None:
    bridge.up("blue", ONE)
    options = ("--bridge", "br0", "--mac", TWO, "--config", FILE)
    up, down = ("hook", "up", *options, "--network", "red"), ("hook", "down", *options)
    calls = int(bridge.host.run(*program("kill_at", "0", *up)).stdout)
    said = bridge.host.run(*program("kill_at", "0", *down), check=False).stdout
    before = bridge.nft()
    bridge.host.run(*program("kill_at", str(int(calls * share)), *up), check=False)
    bridge.up("red", TWO)
    assert bridge.services() == BLUE_THEN_RED
    assert bridge.ask(80) == "one"
    bridge.host.run(*program("kill_at", str(int(int(said) * share)), *down), check=False)
    bridge.down(TWO)
    assert bridge.nft() == before
    bridge.up("blue", ONE)
    assert bridge.services() == BLUE


def test_a_set_of_another_type_makes_up_fail(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.host.run("nft", "delete set ip one_tproxy gu_br0; add set ip one_tproxy gu_br0 { type ifname; }")
    options = ("--network", "red", "--mac", TWO, "--config", FILE)
    done = bridge.host.tproxy("hook", "up", "--bridge", "br0", *options, check=False)
    assert done.returncode == 1
    assert "set gu_br0 is not of type ether_addr" in done.stderr


def test_the_set_goes_with_the_bridge_also_when_its_map_is_gone(bridge: Bridge) -> None:
    bridge.up("blue", ONE)
    bridge.host.run("nft", "delete map ip one_tproxy ep_br0")
    bridge.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert bridge.host.run("nft", "list", "ruleset").stdout == ""


def test_a_set_that_outlived_its_map_tells_nothing(bridge: Bridge) -> None:
    bridge.up("red", ONE)
    bridge.host.run("nft", "delete map ip one_tproxy ep_br0")
    bridge.up("blue", TWO)
    assert bridge.services() == BLUE
    assert ONE not in bridge.nft()


@pytest.mark.parametrize("mac", ["02:00:0a:00:00", "", "02-00-0a-00-00-05", "0g:00:0a:00:00:05"])
def test_what_is_no_mac_is_a_wrong_command_line(bridge: Bridge, mac: str) -> None:
    done = bridge.host.tproxy("hook", "up", "--bridge", "br0", f"--mac={mac}", check=False)
    assert done.returncode == 2
    assert "is not a MAC address" in done.stderr

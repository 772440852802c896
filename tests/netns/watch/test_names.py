"""A watcher whose configuration has host names: services follow the addresses of their names."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from tests.netns.etc import private_etc
from tests.netns.program import program
from tests.netns.waiting import eventually
from tests.netns.watch.watched_host import CONFIG, ENDPOINT, Host
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest
from tproxy.watch.names import INTERVAL

NAME_SERVER = "10.11.12.53"
OTHER = "10.11.12.14"  # the endpoint there answers "two"
THIRD = "10.11.12.15"
ZONE = "/run/zone"
SERVICES = f"""
- {{service_port: 5040, remote_addr: api.example, remote_port: 8080}}
- {{service_port: 5041, remote_addr: api.example, remote_port: 8080, networks: red}}
- {{service_port: 5042, remote_addr: {ENDPOINT}, remote_port: 8080}}
"""


class Site(Host):
    """Also a name server, bridge br0 that the watcher brings up, and one that a hook brought up for "red"."""

    def __init__(self, host: Host) -> None:
        self.hypervisor = host.hypervisor
        self.hypervisor.add_endpoint(OTHER, 8080, "two")
        self.zone(f"api.example {ENDPOINT}")
        self.hypervisor.add_endpoint(NAME_SERVER, 53, program=program("name_server", ZONE))
        patient = f"nameserver {NAME_SERVER}\noptions timeout:30 attempts:1\n"
        private_etc(self.hypervisor, resolv_conf=patient, nsswitch_conf="hosts: dns\n")
        self.configure(more=SERVICES)
        self.guests: dict[str, Guest] = {}
        for number, bridge in enumerate(("br0", "hooked")):
            self.hypervisor.add_bridge(bridge)
            self.guests[bridge] = self.hypervisor.add_guest(f"guest{number}", bridge)
        self.hook("up", "--bridge", "hooked", "--network", "red")

    def zone(self, *lines: str) -> None:
        """Let the name server answer so."""
        new = self.hypervisor.path(f"{ZONE}.new")
        new.write_text("\n".join(lines))
        new.rename(self.hypervisor.path(ZONE))

    def start(self) -> None:
        """Start the watcher, and wait until it has looked up all names."""
        self.watch_with_clock("standing")
        self.wait_up("br0")
        self.wait_known("api.example", ENDPOINT)

    def look_again(self) -> None:
        """Let the watcher begin to look up all names once more."""
        self.pass_time(INTERVAL + 1)

    def wait_known(self, name: str, *addresses: str) -> None:
        """Wait until the watcher has these addresses of a name, and followed them."""
        for _ in eventually():
            for file in self.hypervisor.path("/run/tproxy").glob("*/names.json"):
                if json.loads(file.read_text()).get(name) == [*addresses]:
                    return

    def ask(self, bridge: str, port: int = 5040) -> str:
        return self.guests[bridge].get(SERVICE_ADDRESS, port)

    def wait_for_answer(self, bridge: str, port: int, text: str) -> None:
        """Wait until a service answers with this text; one that the watcher has not added yet refuses."""
        for _ in eventually():
            with suppress(ProcessError):
                if self.ask(bridge, port) == text:
                    break


@pytest.fixture
def site(host: Host) -> Site:
    return Site(host)


def test_services_follow_a_changed_address_on_all_bridges_and_the_others_stay(site: Site) -> None:
    site.start()
    site.nft(f"add element ip one_tproxy ep_br0 {{ 99 : {ENDPOINT} . 8080 }}")
    site.zone(f"api.example {OTHER}")
    site.look_again()
    for bridge, port in (("br0", 5040), ("hooked", 5040), ("hooked", 5041)):
        site.wait_for_answer(bridge, port, "two")
    site.wait_for_line(f"the address of api.example is {OTHER}, no longer {ENDPOINT}")
    assert site.ask("hooked", 5042) == "one"
    assert f"99 : {ENDPOINT} . 8080" in site.nft("list map ip one_tproxy ep_br0")

    # The watcher knows that the services moved: a reload of the unchanged file changes nothing.
    site.hypervisor.tproxy("reload", env={"TPROXY_CONFIG": CONFIG})
    site.pass_time(1)
    assert site.ask("br0") == "two"
    assert f"99 : {ENDPOINT} . 8080" in site.nft("list map ip one_tproxy ep_br0")


def test_all_addresses_of_a_name_are_endpoints(
    site: Site,
) -> None:
    site.start()
    site.zone(f"api.example {ENDPOINT} 10.11.12.1")
    site.look_again()
    site.wait_known("api.example", "10.11.12.1", ENDPOINT)
    assert site.ask("br0") == "one"
    for _ in eventually():
        if f"endpoints=10.11.12.1%2C{ENDPOINT}" in site.nft("list map ip one_tproxy ep_br0"):
            break
    assert site.ask("br0") == "one"
    site.zone(f"api.example {OTHER} {THIRD}")
    site.look_again()
    site.wait_for_answer("br0", 5040, "two")


def test_a_name_that_never_resolved_is_served_from_the_answer_on(site: Site) -> None:
    later = "- {service_port: 5050, remote_addr: later.example, remote_port: 8080}\n"
    site.configure(more=SERVICES + later)
    site.start()
    assert "5050" not in site.nft("list map ip one_tproxy ep_br0")
    site.zone(f"api.example {ENDPOINT}", f"later.example {OTHER}")
    site.look_again()
    site.wait_for_answer("br0", 5050, "two")


def test_a_service_that_somebody_moved_by_hand_stays_there(site: Site) -> None:
    site.start()
    element = "element ip one_tproxy ep_hooked { 5040 : %s . 8080 }"
    site.nft(f"delete {element % ENDPOINT}; add {element % OTHER}")
    site.zone(f"api.example {THIRD}")
    site.look_again()
    for _ in eventually():
        if f"5041 : {THIRD} . 8080" in site.nft("list map ip one_tproxy ep_hooked"):
            break
    site.wait_for_answer("hooked", 5040, "two")  # when the daemon has heard of the change


@pytest.mark.parametrize("zone", ["", "api.example 224.0.0.1"], ids=["gone", "unusable"])
def test_a_name_without_a_usable_address_keeps_the_one_it_had(site: Site, zone: str) -> None:
    site.start()
    site.zone(zone, "new.example 10.11.12.9")
    # The second name shows when the watcher has looked up the first one as well.
    site.configure(more=f"{SERVICES}- {{service_port: 1, remote_addr: new.example, remote_port: 1}}\n")
    site.signal("HUP", site.watcher)
    site.look_again()
    site.wait_known("new.example", "10.11.12.9")
    assert site.ask("hooked") == "one"
    site.zone(f"api.example {OTHER}")
    site.look_again()
    site.wait_for_answer("hooked", 5040, "two")


def test_a_bridge_that_cannot_follow_now_follows_later(site: Site) -> None:
    site.configure(grace=3600, more=SERVICES)
    site.start()
    site.hypervisor.ip("link delete hooked")
    site.zone(f"api.example {OTHER}")
    for _ in range(2):
        site.look_again()
        site.wait_for_line(
            "bridge hooked does not follow a changed address yet: bridge hooked does not exist"
        )
        site.wait_for_answer("br0", 5040, "two")
    site.hypervisor.add_bridge("hooked")
    site.look_again()
    for _ in eventually():
        if f"5040 : {OTHER} . 8080" in site.nft("list map ip one_tproxy ep_hooked"):
            break
    assert site.log().count("does not follow a changed address yet") == 1


def test_a_silent_name_server_keeps_the_watcher_from_nothing(site: Site) -> None:
    site.start()
    site.pass_time(2)
    site.wait_until_watched("br0", "hooked")
    site.zone("api.example")
    site.look_again()
    unanswered = site.hypervisor.path(f"{ZONE}.unanswered")
    for _ in eventually():
        if unanswered.exists():
            break
    site.hypervisor.ip("link set br0b nomaster")
    site.pass_time(1)
    site.wait_for_repair("br0", "make br0b a port of br0")
    site.signal("TERM", site.watcher)
    for _ in eventually():
        if site.has_ended(site.watcher):
            break


def test_a_change_that_happens_while_no_watcher_runs_is_followed(site: Site) -> None:
    site.start()
    site.signal("TERM", site.watcher)
    for _ in eventually():
        if site.has_ended(site.watcher):
            break
    site.zone(f"api.example {OTHER}")
    site.watch()
    for bridge in ("br0", "hooked"):
        site.wait_for_answer(bridge, 5040, "two")

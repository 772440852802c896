"""Limits and time-outs: what a guest, a bridge and an endpoint may have, and how long nothing may happen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.netns.program import program
from tests.netns.visiting import Visitor
from tests.netns.waiting import eventually
from tests.netns.worker.crew import CONFIG, DRAINING, ECHO, HTTP, WORKER, Crew, Load
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

OTHER = 70  # a service port that leads to the same endpoint as ECHO


class Limited(Crew):
    """A crew whose services have options: ``options`` by service port, and ``general`` for the whole file."""

    options: dict[int, str]
    general: str

    def __init__(self, host: Hypervisor, workers: int = 2, guests: int = 2) -> None:
        self.options = {}
        self.general = ""
        super().__init__(host, workers, guests)
        self.dial(OTHER, self._services[ECHO])

    def configure(self, workers: int) -> None:
        self.count = workers
        services = "".join(
            f"- {{service_port: {port}, remote_addr: {endpoint}, {self.options.get(port, '')}}}\n"
            for port, endpoint in self._services.items()
        )
        self.host.write(CONFIG, f"tproxy_workers: {workers}\n{self.general}\ntproxy:\n{services}")

    def set(self, general: str = "", **options: str) -> None:
        """Have these options, for instance ``echo="idle_timeout: 1"``, on all bridges."""
        self.general = general
        self.options = {{"echo": ECHO, "other": OTHER}[name]: text for name, text in options.items()}
        self.apply()

    def apply(self) -> None:
        self.configure(self.count)
        self.tproxy("refresh")

    def limited(self, port: int = ECHO) -> dict[str, int]:
        """Return how often each limit or time-out took effect, without those that did not."""
        counts: dict[str, int] = self.service(port)["limited"]
        return {name: count for name, count in counts.items() if count}

    def await_limited(self, name: str, port: int = ECHO) -> None:
        for _ in eventually():
            if self.limited(port).get(name):
                return

    def await_none_open(self, port: int) -> None:
        for _ in eventually():
            if not self.service(port)["open"]:
                return

    def add_guest_of(self, bridge: str) -> Guest:
        self.add_bridge(bridge)
        return self.host.add_guest(f"guest_{bridge}", bridge, "10.0.0.10/24")


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Limited:
    return Limited(hypervisor)


RESET = "ECONNRESET"


# Numbers


def test_a_guest_with_as_many_connections_as_it_may_have_gets_resets_and_others_are_served(
    crew: Limited,
) -> None:
    crew.set("tproxy_max_connections_per_guest: 5")
    greedy, other = (Visitor(guest, ECHO) for guest in crew.guests)
    assert greedy.open(8) == {"served": 5, RESET: 3}
    assert other.open(5) == {"served": 5}
    assert crew.limited() == {"max_connections_per_guest": 3}
    assert greedy.try_all() == {"served": 5}
    greedy.close(2)
    for _ in eventually():
        if crew.service(ECHO)["open"] == 8:
            break
    assert greedy.open(3) == {"served": 2, RESET: 1}
    line = (
        f"bridge=br0 port={ECHO} connection reset by max_connections_per_guest: guest=10.0.0.10, 5 are open"
    )
    assert crew.log().count("connection reset by") == crew.log().count(line) == 1


def test_all_services_of_a_bridge_together_give_a_guest_no_more_than_the_largest_limit(crew: Limited) -> None:
    crew.set("tproxy_max_connections_per_guest: 6", other="max_connections_per_guest: 2")
    echo, other = Visitor(crew.guests[0], ECHO), Visitor(crew.guests[0], OTHER)
    assert other.open(3) == {"served": 2, RESET: 1}
    assert echo.open(6) == {"served": 4, RESET: 2}
    assert crew.limited(OTHER) == {"max_connections_per_guest": 1}
    crew.set()  # a reload counts for connections that are open, and for the next ones
    assert echo.open(20) == {"served": 20}
    assert echo.try_all() == {"served": 24}


def test_a_full_bridge_is_refused_more_and_another_bridge_is_served(crew: Limited) -> None:
    crew.change_workers(1)
    crew.set("tproxy_max_connections_per_bridge: 8")
    elsewhere = Visitor(crew.add_guest_of("br1"), ECHO)
    one, two = (Visitor(guest, ECHO) for guest in crew.guests)
    assert two.open(1) == {"served": 1}
    # The last quarter is shared: a guest of two may not have more of eight than four, from six on.
    assert one.open(8) == {"served": 5, RESET: 3}
    assert two.open(8) == {"served": 2, RESET: 6}
    assert elsewhere.open(8) == {"served": 8}
    assert crew.limited() == {"max_connections_per_guest": 3, "max_connections_per_bridge": 6}


def test_several_workers_share_the_limit_of_a_bridge(crew: Limited) -> None:
    crew.set("tproxy_max_connections_per_bridge: 8")
    one, two = (Visitor(guest, ECHO) for guest in crew.guests)  # each has a worker of its own
    assert one.open(6) == {"served": 4, RESET: 2}
    assert two.open(6) == {"served": 4, RESET: 2}


def test_connections_to_one_endpoint_are_limited_for_all_bridges_together(crew: Limited) -> None:
    crew.change_workers(1)
    crew.set("tproxy_max_connections_to_endpoint: 6")
    here, elsewhere = Visitor(crew.guests[0], ECHO), Visitor(crew.add_guest_of("br1"), OTHER)
    assert here.open(4) == {"served": 4}
    assert elsewhere.open(4) == {"served": 2, RESET: 2}
    assert crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"  # another endpoint


def test_all_connections_of_the_host_are_limited(crew: Limited) -> None:
    crew.change_workers(1)
    crew.set("tproxy_max_connections: 6")
    one, two = (Visitor(guest, ECHO) for guest in crew.guests)
    assert one.open(4) == {"served": 4}
    assert two.open(4) == {"served": 2, RESET: 2}
    assert crew.limited() == {"max_connections": 2}
    crew.tproxy("restart")  # the setting goes on, for the new workers
    assert two.open(8) == {"served": 6, RESET: 2}


def test_one_guest_cannot_take_the_descriptors_of_others(crew: Limited) -> None:
    elsewhere = Visitor(crew.add_guest_of("br1"), ECHO)
    crew.host.run(
        "sh", "-c", f"ulimit -n 600; exec {sys.executable} -m tproxy restart", env={"TPROXY_CONFIG": CONFIG}
    )
    crew.change_workers(1)
    greedy, neighbour = (Visitor(guest, ECHO) for guest in crew.guests)
    assert neighbour.open(1) == {"served": 1}
    got = greedy.open(400)
    assert 0 < got["served"] < 100
    assert got == {"served": got["served"], RESET: 400 - got["served"]}
    assert neighbour.open(10) == {"served": 10}
    assert elsewhere.open(20) == {"served": 20}
    assert greedy.try_all() == {"served": got["served"]}
    crew.hook_up("br1")


def test_status_shows_limits_and_what_they_refused(crew: Limited) -> None:
    crew.set(echo="max_connections_per_guest: 2")
    Visitor(crew.guests[0], ECHO).open(5)
    service = crew.service(ECHO)
    assert service["options"]["max_connections_per_guest"] == 2
    assert service["options"]["idle_timeout"] == 3600
    assert f"br0, port {ECHO}: max_connections_per_guest (2): 3" in crew.tproxy("status", "-v").stdout


# Times


def test_a_silent_connection_is_reset_after_its_idle_timeout_and_a_busy_one_is_not(crew: Limited) -> None:
    crew.set(echo="idle_timeout: 2")
    silent, never = (Visitor(crew.guests[0], port) for port in (ECHO, OTHER))
    busy = Load(crew.guests[0], callers=0, streams=1)
    assert silent.open(3) == {"served": 3}
    assert never.open(1) == {"served": 1}
    for _ in eventually():
        if crew.limited() == {"idle_timeout": 3}:
            break
    assert busy.end()["streams"] == ["whole"]
    assert silent.try_all() == {RESET: 3}
    assert never.try_all() == {"served": 1}
    assert crew.log().count("connection reset by idle_timeout") == 1
    assert crew.log().count("end=idle_timeout") == 3


def test_a_half_closed_and_silent_connection_is_reset(crew: Limited) -> None:
    crew.serve(90, "sink")
    crew.options = {90: "half_closed_timeout: 1"}
    crew.apply()
    half = crew.guests[0].popen(
        *program("caller", "say_and_end", SERVICE_ADDRESS, "90", "hello"), stdout=subprocess.PIPE
    )
    whole = Visitor(crew.guests[0], ECHO)
    whole.open()
    assert half.communicate()[0] == f"{RESET}\n"
    assert crew.limited(90) == {"half_closed_timeout": 1}
    assert whole.try_all() == {"served": 1}


def test_connections_of_a_guest_that_vanished_end(crew: Limited) -> None:
    crew.serve(90, "source", "--bytes", "100000000000")
    crew.options = {90: "user_timeout: 2"}
    crew.apply()
    guest = crew.guests[0]
    guest.popen(*program("caller", "download", SERVICE_ADDRESS, "90"), stdout=subprocess.PIPE)
    for _ in eventually():
        if crew.service(90)["bytes_to_guest"]:
            break
    guest.ip("link set eth0 down")
    crew.await_none_open(90)
    assert crew.limited(90) == {"user_timeout": 1}


def test_a_guest_that_reads_nothing_for_too_long_is_reset(crew: Limited) -> None:
    crew.serve(90, "source", "--bytes", "100000000")
    crew.options = {90: "user_timeout: 2"}
    crew.apply()
    reader = crew.guests[0].popen(
        *program("late_reader", SERVICE_ADDRESS, "90"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    crew.await_limited("user_timeout", 90)
    crew.await_none_open(90)
    out, problem = reader.communicate("\n")
    assert "ConnectionResetError" in problem
    assert out == ""


def test_an_endpoint_that_reads_nothing_for_too_long_is_reset(crew: Limited) -> None:
    crew.serve(90, "sink")
    crew.options = {90: "user_timeout: 2"}
    crew.apply()
    crew.guests[0].popen(*program("caller", "flood", SERVICE_ADDRESS, "90", "1"), stdout=subprocess.PIPE)
    crew.await_limited("user_timeout", 90)
    crew.await_none_open(90)
    assert crew.service(90)["last_error"].endswith("endpoint lost: Connection timed out")


def test_connections_in_an_old_worker_are_reset_after_the_drain_timeout(crew: Limited) -> None:
    crew.set(echo="drain_timeout: 2")
    old, kept = Visitor(crew.guests[0], ECHO), Visitor(crew.guests[1], OTHER)
    assert old.open(3) == {"served": 3}
    assert kept.open(1) == {"served": 1}
    crew.tproxy("restart")
    new = Visitor(crew.guests[0], ECHO)
    assert new.open(2) == {"served": 2}
    crew.await_in_log("end=drain_timeout", 3)  # a line each
    assert old.try_all() == {RESET: 3}
    assert crew.log().count("end=drain_timeout") == 3
    for _ in eventually():
        if len(crew.pids(DRAINING)) == 1:
            break
    assert kept.try_all() == {"served": 1}
    assert new.try_all() == {"served": 2}
    assert len(crew.pids(WORKER)) == 2


# The maps


def test_options_that_do_not_fit_into_a_comment_count_and_are_repaired_by_the_next_hook(
    crew: Limited,
) -> None:
    every = (
        "name: a name of some twenty letters, connect_timeout: 4, max_connections_per_guest: 2, "
        "max_connections_per_bridge: 900, max_connections_to_endpoint: 901, idle_timeout: 902, "
        "half_closed_timeout: 903, user_timeout: 904, drain_timeout: 905"
    )
    crew.set(echo=every)
    visitor = Visitor(crew.guests[0], ECHO)
    assert visitor.open(3) == {"served": 2, RESET: 1}
    options = crew.service(ECHO)["options"]
    assert [*options.values()] == ["a name of some twenty letters", 4.0, 2, *range(900, 906), "", "first", 0]
    crew.host.run("nft", "flush set ip one_tproxy op_br0")  # another program damages it
    crew.tproxy("reload")
    assert crew.service(ECHO)["options"]["drain_timeout"] == 905  # what is in the map itself
    assert crew.service(ECHO)["options"]["name"] == ""
    assert "op_br0" in crew.log()
    crew.hook_up()
    assert crew.service(ECHO)["options"] == options
    crew.tproxy("restart")
    assert crew.service(ECHO)["options"] == options
    crew.set()
    assert "op_br0" not in crew.host.run("nft", "list", "ruleset").stdout
    crew.set(echo=every)
    crew.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert "one_tproxy" not in crew.host.run("nft", "list", "tables").stdout


def test_options_that_somebody_wrote_into_the_map_count(crew: Limited) -> None:
    nft = [f"delete element ip one_tproxy ep_br0 {{ {ECHO} }}"]
    comment = "max_connections_per_guest=1 idle_timeout=0 user_timeout=0 drain_timeout=soon"
    nft.append(f'add element ip one_tproxy ep_br0 {{ {ECHO} comment "{comment}" : 10.11.12.13 . 9000 }}')
    crew.host.run("nft", "; ".join(nft))
    crew.tproxy("reload")
    visitor = Visitor(crew.guests[0], ECHO)
    assert visitor.open(2) == {"served": 1, RESET: 1}
    options = crew.service(ECHO)["options"]
    assert (options["idle_timeout"], options["user_timeout"], options["drain_timeout"]) == (0, 0, 3600)

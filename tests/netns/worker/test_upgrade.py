"""An upgrade from the last version whose daemon carried the connections itself: nobody notices.

The old version comes from this repository's history (old_version.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.waiting import eventually
from tests.netns.worker.crew import CONFIG, DRAINING, NETNS, WORKER, Crew, Load, start_asking, whole
from tests.netns.worker.old_version import WITHOUT_ROUTES, unpacked
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor

SOURCE = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of the old version."""
    return unpacked(tmp_path_factory.mktemp("old"))


@pytest.fixture
def crew(hypervisor: Hypervisor, old: str) -> Crew:
    """A host on which daemon and relay of the old version serve the guests."""
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    hook = ("hook", "up", "--bridge", "br0", "--config", CONFIG)
    crew.host.tproxy(*hook, env={"PYTHONPATH": old})
    assert crew.pids(WORKER) == []
    return crew


def test_a_restart_with_the_new_version_refuses_nobody_and_old_streams_end_whole(crew: Crew) -> None:
    loads = [Load(guest) for guest in crew.guests]
    daemon, relay = crew.daemon, crew.relay
    crew.tproxy("restart")
    crew.await_workers(2)
    crew.await_draining(daemon)
    assert crew.relay != relay
    for load in loads:
        load.go_on()
    list(whole(loads))
    crew.await_draining()
    assert [guest.get(SERVICE_ADDRESS, 80) for guest in crew.guests] == ["hello"] * 2


@pytest.mark.parametrize("command", ["start", "restart", "hook"])
def test_guests_that_wait_in_the_old_relay_after_its_daemon_died_are_served(crew: Crew, command: str) -> None:
    crew.kill_daemon()
    asking = [start_asking(guest) for guest in crew.guests for _ in range(5)]
    crew.await_connected(len(asking))
    old_relay = crew.relay
    if command == "hook":
        crew.hook_up()
    else:
        crew.tproxy(command)
    assert [each.communicate()[0] for each in asking] == ["hello"] * len(asking)
    assert crew.relay != old_relay
    crew.await_workers(2)


@pytest.mark.parametrize("command", ["reload", "hook"])
def test_a_running_old_daemon_obeys_commands_of_the_new_version(crew: Crew, command: str) -> None:
    loads = [Load(guest) for guest in crew.guests]
    daemon = crew.daemon
    if command == "hook":
        crew.hook_up()
    else:
        crew.tproxy(command)
    assert crew.daemon == daemon
    for load in loads:
        load.go_on(3)
    list(whole(loads))


def test_stop_ends_the_old_daemon_that_only_finishes_its_connections(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.tproxy("restart")
    crew.tproxy("stop")
    assert load.end()["streams"] == ["ECONNRESET"]
    assert crew.processes() == {}


def test_old_connections_end_when_their_bridge_is_taken_down(crew: Crew) -> None:
    crew.add_bridge("br1")
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.tproxy("restart")
    load.go_on()
    crew.tproxy("hook", "down", "--bridge", "br0", "--force")
    crew.await_draining()


def test_the_sockets_of_the_old_relay_reset_connections_of_a_worker_that_dies(crew: Crew) -> None:
    """A listener that was made by the old version lacks an option, which the new relay sets."""
    before = crew.host.run("ss", "-Hltne", netns=NETNS).stdout
    crew.tproxy("restart")
    after = crew.host.run("ss", "-Hltne", netns=NETNS).stdout
    inodes = [{word for word in shown.split() if word.startswith("ino:")} for shown in (before, after)]
    assert inodes[0] == inodes[1]
    load = Load(crew.guests[0], callers=0, streams=1)
    crew.kill(crew.worker_of(crew.guests[0]))
    assert load.end()["streams"] == ["ECONNRESET"]


def test_a_service_of_the_old_version_becomes_the_new_one_in_the_same_process(
    hypervisor: Hypervisor, old: str
) -> None:
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    link = crew.host.path("/run/code/tproxy")
    link.parent.mkdir()
    link.symlink_to(f"{old}/tproxy")
    environment = {"PYTHONPATH": "/run/code", "TPROXY_CONFIG": CONFIG}
    crew.host.popen(sys.executable, "-m", "tproxy", "daemon", env=environment)
    crew.await_listening()
    loads = [Load(guest) for guest in crew.guests]
    service = crew.daemon
    assert crew.pids(WORKER) == []
    link.unlink()
    link.symlink_to(SOURCE / "tproxy")
    crew.tproxy("restart")
    assert crew.daemon == service
    crew.await_workers(2)
    for _ in eventually():
        if len(crew.pids(DRAINING)) == 1:
            break
    for load in loads:
        load.go_on()
    list(whole(loads))
    crew.await_draining()
    for _ in eventually():
        if "defunct" not in crew.host.run("ps", "-ef").stdout:
            break


def test_workers_and_relays_without_routes_are_replaced_and_nobody_notices(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    before = {"PYTHONPATH": unpacked(tmp_path, WITHOUT_ROUTES)}
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    hypervisor.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG, env=before)
    workers, relay = crew.await_workers(2), crew.relay
    loads = [Load(guest) for guest in crew.guests]
    crew.tproxy("restart")
    crew.await_workers(2, *workers)
    assert crew.relay != relay
    for load in loads:
        load.go_on()
    list(whole(loads))
    crew.await_draining()
    assert [guest.get(SERVICE_ADDRESS, 80) for guest in crew.guests] == ["hello"] * 2

"""``tproxy daemon``: the daemon as a service manager runs it, in the foreground and with one process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.netns.asking import Asking
from tests.netns.conftest import ENDPOINTS
from tests.netns.program import program
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor
from tproxy.process.service_manager import LEAVE_SIGNAL

CONFIG = "tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"


class Manager:
    """Does what a service manager does: starts the daemon, and is told when it is ready (sd_notify(3))."""

    def __init__(self, host: Hypervisor) -> None:
        self._host = host
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(host.path("/run/notify")))
        self._socket.settimeout(PATIENCE)

    def start(self, python: str = sys.executable) -> subprocess.Popen[str]:
        """Return when the daemon has reported that it is ready."""
        environment = {"NOTIFY_SOCKET": "/run/notify", "TPROXY_CONFIG": "/run/tproxy.yaml"}
        # A Python at another path has other directories to import from.
        environment["PYTHONPATH"] = ":".join([str(ENDPOINTS.parents[3]), *filter(None, sys.path)])
        unit = self._host.popen(python, "-m", "tproxy", "daemon", env=environment)
        assert self._socket.recv(100) == b"READY=1"
        return unit

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(hypervisor: Hypervisor) -> Iterator[Manager]:
    with closing(Manager(hypervisor)) as found:
        yield found


@pytest.fixture
def guest(hypervisor: Hypervisor) -> Guest:
    """A guest on a bridge that is not up yet; the configuration names an endpoint that echoes."""
    hypervisor.write("/run/tproxy.yaml", CONFIG)
    hypervisor.add_bridge("br0")
    hypervisor.add_endpoint("10.11.12.13", 80, program=(sys.executable, str(ENDPOINTS), "echo"))
    return hypervisor.add_guest("guest", "br0")


def up(host: Hypervisor) -> None:
    host.tproxy("hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml")


def assert_served(guest: Guest) -> None:
    Talk(guest).end()


def pids(host: Hypervisor) -> dict[str, int]:
    lines = host.tproxy("status").stdout.splitlines()
    return {title: int(pid) for title, pid in (line.split(": ") for line in lines)}


def titles(host: Hypervisor) -> str:
    return host.run("ps", "-eo", "stat,args").stdout


def wait_for_the_end_of_draining(host: Hypervisor) -> None:
    for _ in eventually():
        if "tproxy-draining" not in titles(host):
            break
    for _ in eventually():  # and it has been waited for
        if not [line for line in titles(host).splitlines() if line.startswith("Z")]:
            break


def test_the_service_stays_without_maps_and_through_all_commands(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    unit = manager.start()
    before = pids(hypervisor)
    assert list(before) == ["one_tproxy"]
    for command in (["start"], ["reload"]):
        hypervisor.tproxy(*command)
        assert pids(hypervisor) == before
    up(hypervisor)
    assert_served(guest)
    assert pids(hypervisor).items() > before.items()
    hypervisor.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert pids(hypervisor) == before
    hypervisor.run("nft", "flush", "ruleset")
    hypervisor.tproxy("reload")
    assert pids(hypervisor) == before
    assert unit.poll() is None


def test_the_service_takes_over_from_a_daemon_that_a_hook_started(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    up(hypervisor)
    before = pids(hypervisor)
    talk = Talk(guest)
    manager.start()
    assert_served(guest)  # the service ports listen when the service is ready
    after = pids(hypervisor)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert talk.say("still there") == "still there"
    talk.end()
    wait_for_the_end_of_draining(hypervisor)


def test_restart_puts_the_installed_code_into_the_same_process(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    unit = manager.start()
    up(hypervisor)
    for _ in range(2):
        before = pids(hypervisor)
        talk = Talk(guest)
        hypervisor.tproxy("restart")
        after = pids(hypervisor)
        assert after["one_tproxy"] == before["one_tproxy"]
        assert after["one_tproxy_br0"] != before["one_tproxy_br0"]
        assert talk.say("still there") == "still there"
        assert_served(guest)
        talk.end()
    wait_for_the_end_of_draining(hypervisor)
    assert unit.poll() is None


def test_the_managers_restart_refuses_no_guest_and_cuts_no_connection(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    unit = manager.start()
    up(hypervisor)
    talk = Talk(guest)
    asking = Asking(guest, 80)
    for _ in range(2):
        hypervisor.run("kill", f"-{LEAVE_SIGNAL.name[3:]}", str(pids(hypervisor)["one_tproxy"]))
        assert unit.wait(PATIENCE) == 0
        unit = manager.start()
    assert talk.say("still there") == "still there"
    asking.go_on(1)
    assert asking.end() == []
    talk.end()
    wait_for_the_end_of_draining(hypervisor)


def test_if_its_python_is_gone_the_service_ends_and_one_process_finishes_the_connections(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    """An upgrade may move the program. The service manager then starts the new one."""
    python = hypervisor.path("/run/python3")
    python.symlink_to(os.path.realpath(sys.executable))
    unit = manager.start("/run/python3")
    up(hypervisor)
    talk = Talk(guest)
    python.unlink()
    hypervisor.run(*program("drain_request"))
    assert unit.wait(PATIENCE) == 1
    log = hypervisor.path("/var/log/one_tproxy.log").read_text()
    assert "the installed code cannot be started: " in log
    assert "unexpected" not in log
    assert "tproxy-draining" in titles(hypervisor)
    assert talk.say("still there") == "still there"
    manager.start()
    assert_served(guest)
    assert talk.say("still there") == "still there"
    talk.end()
    wait_for_the_end_of_draining(hypervisor)


def test_a_killed_service_finds_its_relays_again(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    unit = manager.start()
    up(hypervisor)
    hypervisor.run("kill", "-KILL", str(pids(hypervisor)["one_tproxy"]))
    unit.wait(PATIENCE)
    assert list(pids(hypervisor)) == ["one_tproxy_br0"]
    manager.start()
    assert list(pids(hypervisor)) == ["one_tproxy", "one_tproxy_br0"]
    assert_served(guest)


@pytest.mark.parametrize("how", ["SIGTERM", "tproxy stop"])
def test_the_service_ends_with_success(
    hypervisor: Hypervisor, manager: Manager, guest: Guest, how: str
) -> None:
    """SIGTERM ends the daemon alone, and guests are served on."""
    unit = manager.start()
    up(hypervisor)
    talk = Talk(guest)
    if how == "SIGTERM":
        hypervisor.run("kill", str(pids(hypervisor)["one_tproxy"]))
    else:
        hypervisor.tproxy("stop")
    assert unit.wait(PATIENCE) == 0
    assert talk.say("is somebody there") == ("is somebody there" if how == "SIGTERM" else "")
    assert list(pids(hypervisor)) == (["one_tproxy_br0"] if how == "SIGTERM" else [])


def test_a_hook_starts_a_daemon_where_the_service_was_stopped(
    hypervisor: Hypervisor, manager: Manager, guest: Guest
) -> None:
    unit = manager.start()
    hypervisor.tproxy("stop")
    assert unit.wait(PATIENCE) == 0
    up(hypervisor)
    assert_served(guest)


def test_a_second_service_is_refused(hypervisor: Hypervisor, manager: Manager) -> None:
    manager.start()
    before = pids(hypervisor)
    done = hypervisor.tproxy("daemon", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tproxy: the daemon runs as a service already: see tproxy restart\n"
    assert pids(hypervisor) == before

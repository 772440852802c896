"""Relays and workers have no rights: they can use the sockets that they have, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.netns.program import program
from tests.netns.surroundings import TPROXY
from tests.netns.waiting import eventually
from tests.netns.worker.crew import DRAINING, ENDPOINT, SPAWNER, WORKER, Crew, Load
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.kernel.privileges import _KEPT, FIRST_UID
from tproxy.lab.hypervisor import Hypervisor
from tproxy.process.table import WATCHER_TITLE

ROOT = Path(__file__).parents[3]
NO_CAPABILITY = "0" * 16


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    return Crew(hypervisor)


def fields(crew: Crew, pid: int) -> dict[str, list[str]]:
    """Return what /proc says of a process, proc(5)."""
    lines = crew.host.path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: words.split() for name, words in (line.split(":", 1) for line in lines)}


def confined(crew: Crew) -> list[int]:
    return [crew.relay, *crew.pids(WORKER), *crew.pids(DRAINING)]


def test_each_relay_and_worker_has_a_user_of_its_own_and_no_rights(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    old = crew.worker_of(crew.guests[0])
    crew.tproxy("restart")
    crew.await_draining(old)
    processes = confined(crew)
    assert len(processes) == 4
    for pid in processes:
        status = fields(crew, pid)
        assert status["Uid"] == status["Gid"] == [str(FIRST_UID + pid)] * 4
        assert status["Groups"] == []
        for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[which] == [NO_CAPABILITY], which
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]  # a filter, proc(5)
    load.end()


def test_daemon_spawner_and_watcher_keep_only_the_rights_that_they_need(crew: Crew) -> None:
    kept = f"{sum(1 << number for number in _KEPT):016x}"
    watcher = crew.host.popen(str(TPROXY), "watch", "--config", "/run/tproxy.yaml")
    for title in ("one_tproxy", SPAWNER, WATCHER_TITLE):
        for _ in eventually():
            if pids := crew.pids(title):
                break
        (pid,) = pids
        status = fields(crew, pid)
        for which in ("CapPrm", "CapEff", "CapBnd"):
            assert status[which] == [kept], (title, which)
        assert status["CapInh"] == status["CapAmb"] == [NO_CAPABILITY]
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]
    watcher.terminate()
    watcher.wait()


def test_what_daemon_spawner_and_watcher_never_need_is_refused_to_them(crew: Crew) -> None:
    """The stages are those of the three, tried from inside. A program that was executed adds no filter."""
    done = json.loads(crew.host.run(*program("limited")).stdout)
    assert done["failed"] == []
    assert len(done["outcome"]) > 40
    assert {name: how for name, how in done["outcome"].items() if how != "EPERM"} == {}
    assert done["clone3"] == "ENOSYS"
    assert set(done["needed"].values()) == {"done"}, done["needed"]
    before, first, again = done["filters"]
    assert first == again == before + 1


def test_the_unit_of_the_daemon_names_the_capabilities_that_it_keeps() -> None:
    for unit in ("tproxy.service", "tproxy-watch.service"):
        text = (ROOT / "etc/systemd" / unit).read_text()
        (line,) = [each for each in text.splitlines() if each.startswith("CapabilityBoundingSet=")]
        named = {each.removeprefix("CAP_") for each in line.partition("=")[2].split()}
        assert named == {reason.partition(":")[0] for reason in _KEPT.values()}, unit


def test_relays_and_workers_see_no_file_and_have_none_open_but_their_log(crew: Crew) -> None:
    load = Load(crew.guests[0], callers=0, streams=1)
    inode = crew.host.run("stat", "-Lc", "%i", "/proc/1/ns/net").stdout.strip()
    empty = f"/run/tproxy/{inode}/empty"
    assert crew.host.run("stat", "-c", "%U %a", empty).stdout == "root 500\n"
    assert crew.host.run("ls", "-A", empty).stdout == ""
    for pid in confined(crew):
        for link in ("root", "cwd"):
            assert crew.host.run("readlink", f"/proc/{pid}/{link}").stdout.strip() == empty
        # Descriptors come and go meanwhile, and find(1) says so.
        shown = crew.host.run("find", f"/proc/{pid}/fd", "-printf", "%l\n", check=False).stdout.split("\n")
        files = {each for each in shown if each.startswith("/")}
        assert files - {"/dev/null"} <= {"/var/log/one_tproxy.log", "/var/log/one_tproxy_br0.log"} | {
            each for each in files if each.startswith("/memfd:tproxy-counters")
        }
    load.end()


def test_a_worker_is_in_the_namespace_of_the_host_and_a_relay_in_that_of_its_bridge(crew: Crew) -> None:
    host = crew.host.run("readlink", "/proc/1/ns/net").stdout
    assert {crew.host.run("readlink", f"/proc/{pid}/ns/net").stdout for pid in crew.pids(WORKER)} == {host}
    assert crew.host.run("readlink", f"/proc/{crew.relay}/ns/net").stdout != host


def test_nothing_of_ours_listens_in_the_namespace_of_the_host(crew: Crew) -> None:
    listening = crew.host.run("ss", "-Hltnp").stdout
    assert ENDPOINT in listening
    assert [pid for pid in crew.processes() if f"pid={pid}," in listening] == []


def test_no_other_user_can_use_the_control_socket_or_see_the_run_directory(crew: Crew) -> None:
    inode = crew.host.run("stat", "-Lc", "%i", "/proc/1/ns/net").stdout.strip()
    other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('control.sock')"
    as_root = f'cd /run/tproxy/{inode} && exec {sys.executable} -c "{connect}"'
    crew.host.run("sh", "-c", as_root)
    listed = crew.host.run(*other, "ls", f"/run/tproxy/{inode}", check=False)
    assert "Permission denied" in listed.stderr
    # Even from a directory that it could not enter.
    inherited = f'cd /run/tproxy/{inode} && exec {" ".join(other)} {sys.executable} -c "{connect}"'
    done = crew.host.run("sh", "-c", inherited, check=False)
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("kind", ["RELAY", "WORKER"])
def test_a_process_that_passed_the_same_stages_can_do_nothing(crew: Crew, kind: str) -> None:
    """The stages are those of a relay or worker, tried from inside."""
    crew.host.path("/run/empty").mkdir(mode=0o555)
    done = json.loads(crew.host.run(*program("confined", "/run/empty", kind)).stdout)
    assert done["failed"] == []
    outcome: dict[str, str] = done["outcome"]
    assert len(outcome) > 40
    assert outcome.pop("start a thread") == "can't start new thread"
    if kind == "RELAY":
        assert outcome.pop("bind a port below 1024") == "EACCES"
    assert outcome.pop("use IPv6") == "done"  # for guests, and for endpoints
    assert {name: how for name, how in outcome.items() if how != "EPERM"} == {}
    assert set(done["needed"].values()) == {"done"}


def test_no_relay_and_no_worker_has_a_copy_of_a_descriptor_or_a_terminal(crew: Crew) -> None:
    """A copy keeps a channel open that the process has closed, and its end unseen."""
    for pid in confined(crew):
        folder = f"/proc/{pid}/fd"
        shown = crew.host.run("find", folder, "-printf", "%f %l\n", check=False).stdout.splitlines()
        links = dict(line.split(" ", 1) for line in shown if line[0].isdigit())
        assert {links.pop(each) for each in "012"} == {"/dev/null"}
        sockets = [each for each in links.values() if each.startswith("socket:")]
        assert len(set(sockets)) == len(sockets), links


def test_service_ports_below_1024_listen_although_no_relay_has_a_capability(crew: Crew) -> None:
    crew.dial(1, "10.11.12.13, remote_port: 8080")
    crew.hook_up()
    assert crew.guests[0].get(SERVICE_ADDRESS, 1) == "hello"


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("setuid", "it has no user id of its own: Operation not permitted"),
        ("setgid", "it has no user id of its own: Operation not permitted"),
        ("setpcap", "its capability bounding set stays: Operation not permitted"),
        ("sys_chroot", "it keeps the host's files in sight: Operation not permitted"),
    ],
)
def test_without_a_capability_of_the_daemon_the_stage_is_logged_and_guests_are_served(
    hypervisor: Hypervisor, missing: str, line: str
) -> None:
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    without = ("setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}")
    hook = ("hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml")
    crew.host.run(*without, str(TPROXY), *hook)
    for guest in crew.guests:
        assert guest.get(SERVICE_ADDRESS, 80) == "hello"
    crew.await_in_log(f"a right that the worker does not need could not be given up: {line}")
    relay_log = crew.host.path("/var/log/one_tproxy_br0.log")
    assert f"a right that the relay does not need could not be given up: {line}" in relay_log.read_text()
    for pid in confined(crew):
        assert fields(crew, pid)["CapEff"] == [NO_CAPABILITY]
    crew.tproxy("restart")
    assert crew.guests[0].get(SERVICE_ADDRESS, 80) == "hello"
    crew.tproxy("stop")
    assert crew.processes() == {}

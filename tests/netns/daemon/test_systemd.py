"""The units in etc/systemd, run by a real systemd.

systemd is process 1 of process, mount and control group namespaces inside a stand-in hypervisor, and shares
the stand-in's network. Everything that it could write to is its own or read-only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.netns.conftest import ENDPOINTS
from tests.netns.metrics import unix_http
from tests.netns.metrics.scraped import key, parse
from tests.netns.program import program
from tests.netns.talk import Talk
from tests.netns.waiting import eventually
from tproxy.kernel import seccomp
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor, kill

SYSTEMD = "/lib/systemd/systemd"
SOURCE = Path(__file__).parents[3]
UNITS = SOURCE / "etc/systemd"

CONFIG = """
tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]
tproxy_bridges: [{bridge: "watched*"}]
"""

BOOT = SOURCE / "tests/netns/programs/boot_systemd.sh"
CANNOT = 77  # its exit code where there are no control groups

TPROXY = f"""#!/bin/sh
export PYTHONPATH={SOURCE} TPROXY_CONFIG=/run/tproxy.yaml
exec {sys.executable} -m tproxy "$@"
"""


# A checkout may be below /tmp or /home; and this systemd cannot make device nodes.
_IN_CHECKOUT = re.compile("^(PrivateTmp|ProtectHome|PrivateDevices)=yes$", re.MULTILINE)


class Machine:
    """A stand-in hypervisor in which systemd runs. ``boot`` is the script that starts it."""

    def __init__(self, host: Hypervisor, boot: Path = BOOT) -> None:
        self.host = host
        for unit in UNITS.glob("*.service"):
            host.write(f"/run/units/{unit.name}", _IN_CHECKOUT.sub("", unit.read_text()))
        # Targets that every unit needs by default; nothing else of this machine is to be started.
        for target in ("test", "sysinit", "basic", "shutdown"):
            host.write(f"/run/units/{target}.target", "[Unit]\nDefaultDependencies=no\n")
        host.write("/run/tproxy.sh", TPROXY)
        host.path("/run/tproxy.sh").chmod(0o755)
        host.write("/run/tproxy.yaml", CONFIG)
        self.pid = 0  # of systemd, as seen from here; 0 until it is found
        self._group = f"tproxy-test-{host.pid}"
        self._boot = host.popen("sh", os.fspath(boot), self._group, SYSTEMD)

    def wait(self) -> None:
        """Return when systemd is up."""
        for _ in eventually():
            if self._boot.poll() == CANNOT:
                pytest.skip("control groups (cgroup2) cannot be mounted here")
            self.pid = self.pid or self._find()
            state = self.run("systemctl", "is-system-running", check=False).stdout if self.pid else ""
            if state in ("running\n", "degraded\n"):
                return

    def _find(self) -> int:
        with suppress(psutil.Error):  # a process ends meanwhile
            for process in psutil.Process(self._boot.pid).children(recursive=True):
                if process.exe() == os.path.realpath(SYSTEMD):
                    return process.pid
        return 0

    def close(self) -> None:
        if self.pid:
            kill(self.pid)
        self._boot.kill()
        self._boot.wait()
        # Remove the control groups that systemd made: there is one hierarchy of them for the whole machine.
        root = f"/run/cgroup/{self._group}"
        for _ in eventually():
            done = self.host.run(
                "find", root, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+", check=False
            )
            if "Device or resource busy" not in done.stderr:
                break

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts"]
        done = subprocess.run([*enter, *argv], check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}{self.journal()}"
        return done

    def systemctl(self, *arguments: str) -> str:
        return self.run("systemctl", *arguments).stdout

    def tproxy(self, *arguments: str) -> str:
        return self.run("tproxy", *arguments).stdout

    def show(self, name: str) -> str:
        return self.systemctl("show", "--value", "--property", name, "tproxy").strip()

    def pids(self) -> dict[str, str]:
        return dict(line.split(": ") for line in self.tproxy("status").splitlines())

    def journal(self) -> str:
        log = self.host.path("/var/log/one_tproxy.log")
        return log.read_text() if log.exists() else ""


def needs(program: str) -> None:
    """Skip if systemd is not installed; in CI fail, or nobody would notice."""
    if shutil.which(program) is None:
        reason = f"needs {program} (package systemd)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Iterator[Machine]:
    needs(SYSTEMD)
    with closing(Machine(hypervisor)) as booted:
        booted.wait()
        yield booted


@pytest.fixture
def guest(machine: Machine) -> Guest:
    """A guest on bridge br0; the configuration names an endpoint that echoes."""
    machine.host.add_bridge("br0")
    machine.host.add_endpoint("10.11.12.13", 80, program=(sys.executable, str(ENDPOINTS), "echo"))
    return machine.host.add_guest("guest", "br0")


def test_systemd_finds_nothing_wrong_with_the_units(hypervisor: Hypervisor) -> None:
    needs("systemd-analyze")
    hypervisor.write("/run/tproxy.sh", TPROXY)
    hypervisor.path("/run/tproxy.sh").chmod(0o755)
    hypervisor.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/sbin")  # /run is mounted noexec
    hypervisor.run("cp", "/run/tproxy.sh", "/usr/local/sbin/tproxy")
    paths = [os.fspath(each) for each in UNITS.glob("*.service")]
    assert len(paths) == 3
    assert hypervisor.run("systemd-analyze", "verify", *paths).stderr == ""


def calls_of(group: str) -> set[str]:
    """Return the system calls of a group such as @clock, with those of the groups in it."""
    shown = subprocess.check_output(["systemd-analyze", "syscall-filter", "--no-pager", group], text=True)
    calls = set()
    for line in map(str.strip, shown.splitlines()[1:]):
        if line and not line.startswith("#"):
            calls |= calls_of(line) if line.startswith("@") else {line}
    return calls


@pytest.mark.parametrize("unit", ["tproxy", "tproxy-watch"])
def test_the_unit_denies_the_calls_that_the_daemon_denies_itself(unit: str) -> None:
    needs("systemd-analyze")
    lines = (UNITS / f"{unit}.service").read_text().splitlines()
    words = [word for line in lines if line.startswith("SystemCallFilter=~") for word in line[18:].split()]
    denied = set().union(*(calls_of(word) if word.startswith("@") else {word} for word in words))
    assert denied >= {rule for _, rules in seccomp._DAEMON for rule in rules if isinstance(rule, str)}
    assert "SystemCallErrorNumber=EPERM" in lines  # and do not kill the process


def test_systemctl_does_what_the_unit_promises(machine: Machine, guest: Guest) -> None:
    machine.tproxy("hook", "up", "--bridge", "br0")
    talk = Talk(guest)
    by_hook = machine.pids()

    machine.systemctl("start", "tproxy")  # takes over from the daemon that the hook started
    started = machine.pids()
    assert started.keys() == by_hook.keys()
    assert started["one_tproxy"] == machine.show("MainPID") != by_hook["one_tproxy"]
    assert talk.say("after start") == "after start"

    machine.systemctl("reload", "tproxy")
    assert machine.pids() == started

    later = Talk(guest)
    machine.systemctl("restart", "tproxy")
    restarted = machine.pids()
    assert restarted.keys() == started.keys()
    assert restarted["one_tproxy"] == machine.show("MainPID") != started["one_tproxy"]
    assert talk.say("after restart") == "after restart"
    assert later.say("after restart") == "after restart"
    assert Talk(guest).say("new") == "new"

    machine.tproxy("restart")
    assert machine.pids()["one_tproxy"] == machine.show("MainPID") == restarted["one_tproxy"]
    assert later.say("still there") == "still there"

    machine.systemctl("stop", "tproxy")
    assert machine.tproxy("status") == ""
    assert machine.show("ActiveState") == "inactive"
    assert later.say("nobody there") == ""

    machine.systemctl("start", "tproxy")
    assert Talk(guest).say("new") == "new"


def test_the_sandbox_of_the_unit_permits_what_the_daemon_needs_and_refuses_the_rest(machine: Machine) -> None:
    """A program beside the daemon, in the sandbox of the unit, tries it. It adds the daemon's own filter."""
    trying = " ".join(program("limited", "--only-the-unit"))
    drop_in = f"[Service]\nEnvironment=PYTHONPATH={SOURCE}\nExecStartPost=/bin/sh -c '{trying} >/run/tried'\n"
    folder = "/etc/systemd/system/tproxy.service.d"
    machine.run("sh", "-c", f'mkdir {folder}; printf %s "$1" >{folder}/trying.conf', "sh", drop_in)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "tproxy")
    tried = json.loads(machine.run("cat", "/run/tried").stdout)
    assert set(tried["needed"].values()) == {"done"}, tried["needed"]
    assert {name: how for name, how in tried["outcome"].items() if how != "EPERM"} == {}


def test_the_daemon_that_goes_on_in_its_process_adds_no_filter(machine: Machine, guest: Guest) -> None:
    machine.systemctl("start", "tproxy")
    machine.tproxy("hook", "up", "--bridge", "br0")
    found = set()
    for _ in range(3):
        status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status").stdout
        found.add(tuple(line for line in status.splitlines() if line.startswith("Seccomp")))
        machine.tproxy("restart")
    assert len(found) == 1
    assert Talk(guest).say("new") == "new"


def test_systemd_restarts_a_killed_daemon_and_its_relays_stay(machine: Machine, guest: Guest) -> None:
    machine.systemctl("start", "tproxy")
    machine.tproxy("hook", "up", "--bridge", "br0")  # its namespace is made after the service has started
    group = machine.run("cat", f"/proc/{machine.pids()['one_tproxy_br0']}/cgroup").stdout
    assert group.strip().endswith("/tproxy.service")
    listening = machine.run("ss", "-Hltne", "-N", "one_tproxy_br0").stdout.split("ino:")[1].split()[0]
    machine.systemctl("kill", "--kill-who=main", "--signal=KILL", "tproxy")
    for _ in eventually():
        if machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active":
            break
    assert machine.pids().keys() == {"one_tproxy", "one_tproxy_br0"}
    assert f"ino:{listening} " in machine.run("ss", "-Hltne", "-N", "one_tproxy_br0").stdout
    assert Talk(guest).say("new") == "new"


def test_systemd_does_not_restart_a_service_that_tproxy_stop_ended(machine: Machine, guest: Guest) -> None:
    machine.systemctl("start", "tproxy")
    machine.tproxy("hook", "up", "--bridge", "br0")
    machine.tproxy("stop")
    for _ in eventually():
        if machine.show("ActiveState") == "inactive":
            break
    assert machine.show("Result") == "success"
    machine.tproxy("hook", "up", "--bridge", "br0")
    assert Talk(guest).say("new") == "new"
    machine.systemctl("start", "tproxy")
    assert machine.pids()["one_tproxy"] == machine.show("MainPID")


def test_the_watcher_unit_brings_up_the_bridges_of_its_configuration_file(machine: Machine) -> None:
    machine.systemctl("start", "tproxy-watch")
    main = machine.systemctl("show", "--value", "--property=MainPID", "tproxy-watch").strip()
    machine.host.add_bridge("watched0")
    machine.host.add_guest("guest", "watched0")
    for _ in eventually():
        if "one_tproxy_watched0" in machine.pids():
            break
    assert machine.pids()["one_tproxy"] == machine.show("MainPID")  # the daemon runs as the unit tproxy
    machine.systemctl("restart", "tproxy-watch")
    assert machine.systemctl("show", "--value", "--property=MainPID", "tproxy-watch").strip() != main
    assert machine.pids().keys() == {"one_tproxy", "one_tproxy_watched0"}


def test_a_watcher_that_was_just_started_can_be_reloaded(machine: Machine) -> None:
    machine.systemctl("start", "tproxy-watch")
    machine.systemctl("reload", "tproxy-watch")
    machine.host.add_bridge("watched0")
    machine.host.add_guest("guest", "watched0")
    for _ in eventually():
        if "one_tproxy_watched0" in machine.pids():
            break
    assert machine.systemctl("show", "--value", "--property=NRestarts", "tproxy-watch") == "0\n"


def test_the_unit_for_metrics_serves_them_whatever_becomes_of_the_daemon(
    machine: Machine, guest: Guest
) -> None:
    def show(name: str) -> str:
        return machine.systemctl("show", "--value", "--property", name, "tproxy-metrics").strip()

    def up() -> float:
        page = unix_http.get(machine.host.path("/run/tproxy-metrics/metrics.sock"))
        return parse(page)[key("tproxy_up")]

    machine.systemctl("start", "tproxy-metrics")
    assert up() == 0
    machine.systemctl("start", "tproxy")
    machine.tproxy("hook", "up", "--bridge", "br0")
    assert up() == 1
    page = parse(unix_http.get(machine.host.path("/run/tproxy-metrics/metrics.sock")))
    assert page[key("tproxy_process_open_fds", process="relay", bridge="br0", worker="")] > 0
    machine.systemctl("stop", "tproxy")
    assert up() == 0
    before = show("MainPID")
    machine.run("pkill", "-KILL", "-xf", "tproxy metrics server")  # in the process namespace of this systemd
    for _ in eventually():
        if show("MainPID") not in ("0", before) and show("ActiveState") == "active":
            break
    assert up() == 0
    machine.systemctl("stop", "tproxy-metrics")
    assert not machine.host.path("/run/tproxy-metrics").exists()

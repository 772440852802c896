"""Each step of hook, restart, drain and upgrade is killed once: only guests of a killed worker notice.

A step is a function of ours, in whatever process: the command, the daemon that it starts, the spawner, a
relay or worker that is starting (programs/killed_once).
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.waiting import eventually
from tests.netns.worker.crew import CONFIG, HTTP, WORKER, Crew, Load, whole
from tests.netns.worker.old_version import unpacked
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.process.service_manager import LEAVE_SIGNAL

SOURCE = Path(__file__).parents[2]
ENVIRONMENT = {
    "PYTHONPATH": f"{SOURCE / 'tests/netns/programs/killed_once'}:{SOURCE}",
    "TPROXY_CONFIG": CONFIG,
}
AT, STEPS = "/run/kill-at", "/run/steps"
HOOK = ("hook", "up", "--bridge", "br0", "--config", CONFIG)


class Case:
    """Something that is done while guests are served, and what is there before and after it."""

    # A step takes seconds, so `make test` takes one in so many. `make test-steps` takes all.
    parts = 16
    # Whether the connections of guests end before the next step.
    anew = False

    def __init__(self, crew: Crew, _old: Path) -> None:
        self.crew = crew

    def begin(self) -> None:
        """Have all processes, which can be killed at a step."""
        self.run(*HOOK)

    def prepare(self, number: int) -> None:
        """Let ``act`` have something to do."""
        self.crew.dial(1000 + number % 2, "10.11.12.13, remote_port: 8080")
        self.crew.dial(1001 - number % 2, "10.11.12.13, remote_port: 8081")
        self.crew.configure(2)

    def act(self) -> None:
        raise NotImplementedError

    def complete(self) -> None:
        """Do what somebody must do after ``act`` was cut short: nothing, where all comes back by itself."""

    def run(self, *arguments: str) -> None:
        """Run a command, whose processes, and those that it starts, can be killed at a step."""
        self.crew.host.run(sys.executable, "-m", "tproxy", *arguments, check=False, env=ENVIRONMENT)


class HookThatChangesAService(Case):
    def act(self) -> None:
        self.run(*HOOK)


class HookOfANewBridge(Case):
    def prepare(self, number: int) -> None:
        super().prepare(number)
        self.crew.host.tproxy("hook", "down", "--bridge", "br1", "--force")

    def act(self) -> None:
        self.run("hook", "up", "--bridge", "br1", "--config", CONFIG)


class Restart(Case):
    def act(self) -> None:
        self.run("restart")


class Drain(Case):
    """A reload with fewer workers: one of them finishes its connections."""

    parts = 32

    def prepare(self, number: int) -> None:
        self.crew.change_workers(3)

    def act(self) -> None:
        self.crew.configure(2)
        self.run("reload")

    def complete(self) -> None:
        self.crew.tproxy("reload")


class Service(Case):
    """The daemon is a service, which the service manager starts again. A restart keeps its process."""

    parts = 96

    def begin(self) -> None:
        forever = f"while :; do {sys.executable} -m tproxy daemon; sleep 0.1; done"
        self.crew.host.popen("sh", "-c", forever, env=ENVIRONMENT)
        for _ in eventually():
            if self.crew.pids("one_tproxy"):
                break
        self.run(*HOOK)

    def act(self) -> None:
        self.run("restart")


class ServiceThatLeaves(Service):
    """The service manager replaces the service, as ``systemctl restart`` does: the daemon leaves."""

    def act(self) -> None:
        before = self.crew.pids("one_tproxy")
        self.crew.signal(LEAVE_SIGNAL.name.removeprefix("SIG"), *before)
        for _ in eventually():
            now = self.crew.pids("one_tproxy")
            if now and now != before:
                return


class Upgrade(Case):
    """A restart from the last version whose daemon carried the connections itself."""

    parts = 96
    anew = True

    def __init__(self, crew: Crew, old: Path) -> None:
        super().__init__(crew, old)
        self.old = unpacked(old)

    def begin(self) -> None:
        self.prepare(0)

    def prepare(self, number: int) -> None:
        self.crew.tproxy("stop")
        self.crew.host.tproxy(*HOOK, env={"PYTHONPATH": self.old})

    def act(self) -> None:
        self.run("restart")

    def complete(self) -> None:
        self.crew.tproxy("restart")


CASES = (HookThatChangesAService, HookOfANewBridge, Restart, Drain, Service, ServiceThatLeaves, Upgrade)
ALL = "TPROXY_ALL_STEPS" in os.environ
TAKEN = [
    pytest.param(case, part, id=f"{case.__name__}-{part}")
    for case in CASES
    for part in range(case.parts if ALL else 1)
]


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    hypervisor.add_bridge("br1")
    # The load makes more connections than the host has local ports for in a minute (docs/security.md).
    hypervisor.run("sysctl", "-w", "net.ipv4.tcp_tw_reuse=1")
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    return crew


def is_whole(crew: Crew) -> bool:
    """Whether one daemon runs, and has a relay and two workers, and a guest is served."""
    with suppress(ProcessError, ValueError, TypeError, KeyError):
        shown = json.loads(crew.host.tproxy("status", "--json").stdout)["daemon"]
        bridge = shown["bridges"]["br0"]
        workers = {each["pid"] for each in shown["workers"] if not each["draining"]}
        return (
            [shown["pid"]] == crew.pids("one_tproxy")
            and [bridge["relay"]] == crew.pids("one_tproxy_br0")
            and workers == set(crew.pids(WORKER))
            and len(workers) == 2
            and len(crew.pids("tproxy-spawner")) == 1
            and all(each["listening"] for each in bridge["services"])
            and crew.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello"
        )
    return False


def await_whole(crew: Crew) -> None:
    for _ in eventually(4 * PATIENCE):
        if is_whole(crew):
            return


def steps_of(case: Case) -> list[str]:
    """Return all steps that processes come to when nothing is killed."""
    crew = case.crew
    case.prepare(0)
    crew.host.write(STEPS, "")
    case.act()
    case.complete()
    await_whole(crew)
    steps = sorted(set(crew.host.path(STEPS).read_text().split()))
    crew.host.run("rm", STEPS)
    return steps


def kill_at_each(case: Case, steps: list[str]) -> None:
    crew = case.crew
    loads: list[Load] = []
    for number, step in enumerate(steps):
        case.prepare(number)
        loads = loads or [Load(guest) for guest in crew.guests]
        crew.host.write(AT, step)
        case.act()
        case.complete()
        await_whole(crew)
        crew.host.run("rm", "-f", AT)
        if step.startswith("worker/"):  # its own connections were reset
            for load in loads:
                report = load.end()
                assert {*report["failed"], *report["streams"]} <= {"whole", "ECONNRESET"}, step
            loads = []
        for load in loads:
            load.go_on(1)
            assert load.look()["failed"] == [], step
        if case.anew:
            assert list(whole(loads)), step
            loads = []
    list(whole(loads))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "part"), TAKEN)
def test_guests_do_not_notice_what_dies_at_a_step(
    crew: Crew, kind: type[Case], part: int, tmp_path: Path
) -> None:
    case = kind(crew, tmp_path)
    case.begin()
    if not case.anew:
        await_whole(crew)
    kill_at_each(case, steps_of(case)[part :: kind.parts])


@pytest.mark.parametrize(
    "step",
    [
        # The daemon, after it has told a relay of workers that have not started yet.
        "daemon/relays.py:_instruct",
        # The spawner, with the order for the relay that is to take over.
        "daemon/spawner.py:_start",
    ],
)
def test_guests_do_not_notice_deaths_in_a_restart_that_they_once_noticed(
    crew: Crew, step: str, tmp_path: Path
) -> None:
    case = Restart(crew, tmp_path)
    case.begin()
    await_whole(crew)
    kill_at_each(case, [step])


def test_a_relay_goes_on_while_its_successors_die_at_their_start(crew: Crew, tmp_path: Path) -> None:
    case = Restart(crew, tmp_path)
    case.begin()
    await_whole(crew)
    loads = [Load(guest) for guest in crew.guests]
    crew.host.write("/run/again", "")
    write = f"printf relay/relay.py:run > {AT}.new; mv {AT}.new {AT}"
    again = crew.host.popen("sh", "-c", f"while [ -e /run/again ]; do {write}; sleep 0.01; done")
    for _ in eventually():
        if crew.host.path(AT).exists():
            break
    case.act()
    crew.host.run("rm", "/run/again")
    again.wait()
    crew.host.run("rm", "-f", AT)
    await_whole(crew)
    for load in loads:
        load.go_on(1)
    list(whole(loads))

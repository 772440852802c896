"""Each step of hook, restart and takeover is killed once: all that died comes back, without a hook.

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
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.model import SERVICE_ADDRESS

SOURCE = Path(__file__).parents[2]
ENVIRONMENT = {
    "PYTHONPATH": f"{SOURCE / 'tests/netns/programs/killed_once'}:{SOURCE}",
    "TPROXY_CONFIG": CONFIG,
}
AT, STEPS = "/run/kill-at", "/run/steps"

# Each is a command that runs while guests are served.
COMMANDS = {
    "hook that changes a service": ("hook", "up", "--bridge", "br0", "--config", CONFIG),
    "hook of a new bridge": ("hook", "up", "--bridge", "br1", "--config", CONFIG),
    "restart": ("restart",),
}
# A step takes seconds, so `make test` takes one in sixteen. `make test-steps` takes all.
PARTS = 16
TAKEN = range(PARTS if os.environ.get("TPROXY_ALL_STEPS") else 1)


@pytest.fixture
def crew(hypervisor: Hypervisor) -> Crew:
    hypervisor.add_bridge("br1")
    # The load makes more connections than the host has local ports for in a minute (docs/security.md).
    hypervisor.run("sysctl", "-w", "net.ipv4.tcp_tw_reuse=1")
    crew = Crew(hypervisor)
    crew.tproxy("stop")
    return crew


def run(crew: Crew, *arguments: str) -> None:
    """Run a command, whose processes, and those that it starts, can be killed at a step."""
    crew.host.run(sys.executable, "-m", "tproxy", *arguments, check=False, env=ENVIRONMENT)


def prepare(crew: Crew, number: int) -> None:
    """Let the next command have something to do."""
    crew.dial(1000 + number % 2, "10.11.12.13, remote_port: 8080")
    crew.dial(1001 - number % 2, "10.11.12.13, remote_port: 8081")
    crew.configure(2)


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", TAKEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_all_that_dies_at_a_step_comes_back_without_a_hook(crew: Crew, command: str, part: int) -> None:
    run(crew, "hook", "up", "--bridge", "br0", "--config", CONFIG)
    await_whole(crew)
    crew.host.write(STEPS, "")
    run(crew, *COMMANDS[command])
    await_whole(crew)
    steps = sorted(set(crew.host.path(STEPS).read_text().split()))
    crew.host.run("rm", STEPS)
    loads = [Load(guest) for guest in crew.guests]
    for number, step in enumerate(steps[part::PARTS]):
        prepare(crew, number)
        if command == "hook of a new bridge":
            crew.host.tproxy("hook", "down", "--bridge", "br1", "--force")
        crew.host.write(AT, step)
        run(crew, *COMMANDS[command])
        await_whole(crew)
        crew.host.run("rm", "-f", AT)
        for load in loads:
            load.go_on(1)
    list(whole(loads))

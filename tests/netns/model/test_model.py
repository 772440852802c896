"""Random steps on a real host, and what guests see after each, compared with a model of it.

Steps are hooks, commands, maps that another program changes, endpoints that come and go, and processes that
are killed. After each, every guest asks every port, and uses every connection that it has open.

`make test` takes a few rows, always the same; `make test-model EXAMPLES=100` takes others, at random.
"""

from __future__ import annotations

import os
from collections import defaultdict

from hypothesis import HealthCheck, Phase, Verbosity, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.netns.model.model import Bridge, Model, Stream, Table
from tests.netns.model.world import ECHO, ENDPOINT_PORTS, World
from tests.netns.waiting import eventually

GUESTS = {"br0": 2, "br1": 1}
PORTS = (80, 81, 82)
STREAMS = 6  # open at the same time, at most

EXAMPLES = int(os.environ.get("TPROXY_MODEL_EXAMPLES", "0"))
# A row is long enough to meet most pairs of steps, and short enough to be read when it fails.
STEPS = 20

bridges = st.sampled_from(list(GUESTS))
endpoints = st.sampled_from(["one", "two"])
tables = st.dictionaries(st.sampled_from(PORTS), endpoints).map(lambda table: {ECHO: "echo", **table})


class Host(RuleBasedStateMachine):
    """The steps. Each is done on the host and told to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(GUESTS)
        self.model = Model({}, {name: Bridge() for name in GUESTS}, set())
        self.owners: dict[int, tuple[str, int]] = {}  # bridge and guest of each stream
        self.opened = 0

    def teardown(self) -> None:
        self.world.close()

    @initialize(config=tables)
    def begin(self, config: Table) -> None:
        for name in ENDPOINT_PORTS:
            self.world.start_endpoint(name)
            self.model.endpoints.add(name)
        self.change_config(config)
        for name in GUESTS:
            self.hook_up(name)

    # Hooks and commands

    @rule(name=bridges)
    def hook_up(self, name: str) -> None:
        self.world.hook("up", name)
        self.model.hook_up(name)

    @rule(name=bridges)
    def hook_down_of_a_bridge_in_use(self, name: str) -> None:
        code = self.world.hook("down", name, check=False)
        assert code == 4 or not self.model.bridges[name].built

    @rule(name=bridges)
    def hook_down(self, name: str) -> None:
        self.world.hook("down", name, "--force")
        self.forget(self.model.hook_down(name))

    @rule(command=st.sampled_from(["start", "reload", "restart", "restart"]))
    def command(self, command: str) -> None:
        self.world.command(command)
        self.forget(self.model.apply_maps())

    @rule()
    def refresh(self) -> None:
        self.world.command("refresh")
        self.forget(self.model.refresh())

    @precondition(lambda self: self.model.running)
    @rule()
    def stop(self) -> None:
        self.world.command("stop")
        assert self.world.processes() == {}
        self.must_be_reset(self.model.stop())

    # What other programs change

    @rule(config=tables)
    def change_config(self, config: Table) -> None:
        self.world.configure(config)
        self.model.config = config

    @rule(name=bridges, port=st.sampled_from(PORTS), endpoint=st.none() | endpoints)
    def edit_map(self, name: str, port: int, endpoint: str | None) -> None:
        mapped = self.model.bridges[name].mapped
        if mapped is not None:
            self.world.edit(name, port, endpoint, mapped)
            self.model.edit(name, port, endpoint)

    @precondition(lambda self: len(self.model.served_bridges()) > 1)
    @rule(name=bridges)
    def delete_map(self, name: str) -> None:
        if self.model.bridges[name].mapped is not None:
            self.world.delete_map(name)
            self.model.delete_map(name)

    @rule(name=endpoints)
    def endpoint_goes_or_comes(self, name: str) -> None:
        if name in self.model.endpoints:
            self.world.kill_endpoint(name)
            self.model.endpoints.remove(name)
        else:
            self.world.start_endpoint(name)
            self.model.endpoints.add(name)

    # Crashes

    @precondition(lambda self: self.model.daemon)
    @rule()
    def kill_daemon(self) -> None:
        self.world.kill(*self.world.pids("one_tproxy"))
        self.model.daemon_killed()

    @precondition(lambda self: self.model.daemon)
    @rule()
    def kill_spawner(self) -> None:
        self.world.kill(*self.world.pids("tproxy-spawner"))

    @precondition(lambda self: self.model.daemon and self.model.served_bridges())
    @rule(which=st.integers(0, 1))
    def kill_relay(self, which: int) -> None:
        served = self.model.served_bridges()
        title = f"one_tproxy_{served[which % len(served)]}"
        killed = self.world.pids(title)
        self.world.kill(*killed)
        self.world.await_successor(title, killed)
        for _ in eventually():  # until the new relay listens, guests may be refused
            if not self.differences():
                return

    @precondition(lambda self: self.model.daemon)
    @rule(which=st.integers(0, 7))
    def kill_worker(self, which: int) -> None:
        for _ in eventually():  # the daemon may just replace those that it has lost
            if workers := self.world.pids("tproxy-worker", "tproxy-draining"):
                break
        worker = workers[which % len(workers)]
        self.world.kill(worker)
        self.must_be_reset(self.model.worker_killed(worker))

    @rule()
    def kill_all_and_start(self) -> None:
        if pids := self.world.processes():
            self.world.kill(*pids)
            self.must_be_reset(self.model.stop())
        self.command("start")

    # Traffic

    @rule(name=bridges, which=st.integers(0, 1))
    def open_stream(self, name: str, which: int) -> None:
        if self.model.answers(name, ECHO) != {"echo"} or len(self.model.streams) >= STREAMS:
            return
        if not self.model.daemon and not self.world.pids("tproxy-worker"):
            return  # it would wait for the next daemon
        guest = which % GUESTS[name]
        self.opened += 1
        worker = self.world.open_stream(name, guest, self.opened)
        self.owners[self.opened] = name, guest
        self.model.streams[self.opened] = Stream(name, worker)

    @invariant()
    def guests_see_what_the_model_says(self) -> None:
        assert not self.differences()

    @invariant()
    def open_connections_go_on(self) -> None:
        ended = {number: end for number, end in self.use(self.model.streams).items() if end != "alive"}
        assert not ended

    # Inside

    def differences(self) -> list[str]:
        """Return a line for each guest that sees something else than the model says."""
        wanted = {name: {port: self.model.answers(name, port) for port in (ECHO, *PORTS)} for name in GUESTS}
        if not self.model.config:
            return []  # before ``begin``
        return [
            f"guest {guest} of {name}, port {port}: {answer}, not {wanted[name][port]}"
            for name, guests in self.world.ask(wanted).items()
            for guest, answers in enumerate(guests)
            for port, answer in answers.items()
            if answer not in wanted[name][port]
        ]

    def use(self, numbers: dict[int, Stream] | list[int]) -> dict[int, str]:
        by_guest: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number in numbers:
            by_guest[self.owners[number]].append(number)
        return self.world.use_streams(by_guest)

    def must_be_reset(self, numbers: list[int]) -> None:
        ends = self.use(numbers)
        note(f"ended: {ends}")
        assert set(ends.values()) <= {"reset"}
        self.forget(numbers)

    def forget(self, numbers: list[int]) -> None:
        for number in numbers:
            self.world.close_streams(*self.owners.pop(number), [number])


def test_guests_see_what_the_model_says_after_any_row_of_steps(real_kernel: None) -> None:
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if EXAMPLES else [])]
    run_state_machine_as_test(
        Host,
        settings=settings(
            max_examples=EXAMPLES or 3,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            phases=phases,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.normal,
        ),
    )

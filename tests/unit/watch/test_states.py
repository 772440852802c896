"""The state machine of a bridge that the watcher repairs."""

from __future__ import annotations

import pytest

from tproxy.watch import states
from tproxy.watch.states import EXAMINED, TABLE, Event, State, Step, step

FINDINGS = (Event.GUARDS_RIGHT, Event.GUARDS_WRONG, Event.MAP_GONE, Event.LINKS_WRONG)


def run(*events: Event, state: State = State.IN_ORDER) -> tuple[State, list[Step]]:
    """Return the state after these events, and all that was to be done on the way."""
    done: list[Step] = []
    for event in events:
        state, steps = step(state, event)
        done += steps
    return state, done


def test_the_table_in_the_docstring_is_the_table() -> None:
    assert states.__doc__
    rows = [line.strip("| ").split("|") for line in states.__doc__.splitlines() if line.startswith("| ")]
    (heading, _, *rows) = [[cell.strip() for cell in row] for row in rows]
    assert heading == ["state", "event", "next state", "then"]
    written = {}
    for state, event, following, *then in rows:
        steps = tuple(Step[name] for name in ", ".join(then).split(", ") if name)
        written[State[state], Event[event]] = (State[following], steps)
    assert len(written) == len(rows)
    assert written == TABLE


def test_every_finding_about_a_bridge_that_is_examined_has_an_answer() -> None:
    for state in EXAMINED - {
        State.UNKNOWN
    }:  # a bridge without a record has no links to compare, and no map to miss
        for event in (*FINDINGS, Event.MAP_RESTORED, Event.RETRY_DUE):
            step(state, event)


def test_a_bridge_that_waits_for_its_repair_accepts_the_end_of_that_and_a_restored_map() -> None:
    for event in (Event.MAP_RESTORED, Event.REPAIRED, Event.REPAIR_FAILED, Event.RETRY_DUE):
        step(State.BROKEN, event)
    for event in (Event.MAP_RESTORED, Event.RETRY_DUE):
        step(State.FAILED, event)


@pytest.mark.parametrize("state", [State.BROKEN, State.FAILED])
@pytest.mark.parametrize("event", FINDINGS)
def test_findings_about_a_bridge_that_waits_for_its_repair_are_refused(state: State, event: Event) -> None:
    with pytest.raises(KeyError):
        step(state, event)


def test_wrong_guards_are_repaired_only_when_a_second_look_finds_them_wrong() -> None:
    assert run(Event.GUARDS_WRONG) == (State.SUSPECT, [Step.LOOK_AGAIN])
    assert run(Event.GUARDS_WRONG, Event.GUARDS_RIGHT) == (State.IN_ORDER, [Step.LOOK_AGAIN, Step.REMEMBER])
    assert run(Event.GUARDS_WRONG, Event.GUARDS_WRONG) == (State.BROKEN, [Step.LOOK_AGAIN, Step.QUEUE_REPAIR])


def test_a_bridge_is_forgotten_only_when_a_second_look_misses_its_map() -> None:
    assert run(Event.MAP_GONE) == (State.MAP_MISSING, [Step.LOOK_AGAIN])
    assert run(Event.MAP_GONE, Event.MAP_GONE) == (State.UNKNOWN, [Step.LOOK_AGAIN, Step.FORGET])
    state, done = run(Event.MAP_GONE, Event.GUARDS_WRONG, Event.MAP_GONE)
    assert state is State.MAP_MISSING
    assert Step.FORGET not in done


def test_links_of_a_bridge_without_a_map_are_not_repaired() -> None:
    assert run(Event.LINKS_WRONG, state=State.MAP_MISSING) == (State.MAP_MISSING, [])


@pytest.mark.parametrize("event", [Event.GUARDS_RIGHT, Event.GUARDS_WRONG])
def test_links_are_examined_when_the_map_is_back(event: Event) -> None:
    _, done = run(event, state=State.MAP_MISSING)
    assert Step.EXAMINE_LINKS in done


@pytest.mark.parametrize("state", [State.IN_ORDER, State.SUSPECT, State.MAP_MISSING, State.FAILED])
def test_a_restored_map_brings_a_repair_at_once(state: State) -> None:
    assert run(Event.MAP_RESTORED, state=state) == (State.BROKEN, [Step.QUEUE_REPAIR])


def test_a_bridge_is_queued_for_repair_once() -> None:
    for (state, event), (following, steps) in TABLE.items():
        queued = Step.QUEUE_REPAIR in steps
        assert queued == (following is State.BROKEN and state is not State.BROKEN), (state, event)


def test_a_failed_repair_is_tried_again_later_and_its_success_looked_at() -> None:
    assert run(Event.REPAIR_FAILED, Event.RETRY_DUE, Event.REPAIRED, state=State.BROKEN) == (
        State.IN_ORDER,
        [Step.RETRY_LATER, Step.QUEUE_REPAIR, Step.EXAMINE_LINKS, Step.LOOK_AGAIN],
    )


def test_a_retry_that_is_due_too_late_changes_nothing() -> None:
    """The bridge was repaired meanwhile for another reason."""
    for state in (State.IN_ORDER, State.SUSPECT, State.MAP_MISSING, State.BROKEN):
        assert run(Event.RETRY_DUE, state=state) == (state, [])

"""A relay that was taken over passes anything on to a worker: the worker goes on, and keeps no descriptor."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.relay.hostile import KINDS, PAYLOADS, open_descriptors, send_hostile
from tests.unit.worker.test_intake import Worker, key_here
from tproxy.relay import wire


@given(messages=st.lists(st.tuples(st.one_of(PAYLOADS, st.just(b"")), KINDS), max_size=12))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_a_relay_passes_on_others_are_served_and_no_descriptor_stays(
    messages: list[tuple[bytes, list[str]]],
) -> None:
    before = open_descriptors()
    worker = Worker()
    other = worker.add_intake()
    try:
        for payload, kinds in messages:
            # An empty payload stands for a message about the port that there is.
            send_hostile(
                worker.relays[0], payload or wire.encode(wire.Accepted(key_here(worker.port))), kinds
            )
            worker.turn()
            if len(worker.intakes) == 1:  # the worker has cut the relay off; another one follows it
                worker.relays[0].close()
                worker.relays[0] = worker.add_intake()
                worker.relays.pop()
        assert not worker.connections
        _, near = worker.guest()
        worker.pass_on(near, relay=worker.relays.index(other))
        worker.turn()
        assert len(worker.connections) == 1
    finally:
        worker.close()
    assert open_descriptors() == before

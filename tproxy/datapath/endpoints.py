"""Which endpoint of a service a connection tries, in which order, and which endpoints have failed. No I/O.

Theory of operation. An endpoint is good or failed. It fails when a dial is refused, is unreachable, or is
silent while another endpoint answers. A failed endpoint is tried only after all good ones, so guests lose no
time with it, and still reach it if nothing else answers. The worker checks it in the background, first after
BACK_OFF_FIRST seconds, then after twice the time of before, up to BACK_OFF_MOST. The first dial or check that
it answers makes it good again.

The state belongs to an address and port, and all services of this worker that have the endpoint share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tproxy.model import Endpoint, Service

# Seconds between two checks of a failed endpoint.
BACK_OFF_FIRST, BACK_OFF_MOST = 1.0, 30.0

# Seconds without an answer after which the next endpoint is dialled beside. A SYN that was lost is repeated
# after a second (RFC 6298, 2.1), and few paths take longer than this to answer.
SILENCE = 0.25


class State:
    """What is known of one endpoint. ``since`` is a time of the caller's clock; 0 when nothing is known."""

    __slots__ = ("back_off", "due", "failed", "since", "why")

    def __init__(self) -> None:
        self.failed = False
        self.since = 0.0
        self.why = ""
        self.back_off = 0.0
        self.due = 0.0


class Endpoints:
    """The endpoints of all services of one worker.

    ``changed`` is called with an endpoint and its state when it failed, or is good again.
    """

    def __init__(self, changed: Callable[[Endpoint, State], None]) -> None:
        self._changed = changed
        self._states: dict[Endpoint, State] = {}
        self._checked: frozenset[Endpoint] = frozenset()  # those for which there is another one
        self._turns: dict[Endpoint, int] = {}
        self._turn = 0
        self._lists: dict[tuple[tuple[str, ...], int], tuple[Endpoint, ...]] = {}
        self.failed: set[Endpoint] = set()
        self.good: set[Endpoint] = set()  # those that have answered

    def candidates(self, service: Service) -> tuple[Endpoint, ...]:
        """As the property of ``Service``, and quicker."""
        if not service.endpoints:
            return (service.endpoint,)
        key = service.endpoints, service.endpoint.port
        found = self._lists.get(key)
        if found is None:
            found = self._lists[key] = service.candidates
        return found

    def keep(self, used: Iterable[Endpoint], checked: Iterable[Endpoint]) -> list[Endpoint]:
        """Forget all endpoints but the ``used`` ones. Of these, only the ``checked`` ones get checks.

        Returns those of which something was known.
        """
        self._checked = frozenset(checked)
        kept = frozenset(used) | self._checked
        gone = [each for each in self._states if each not in kept]
        for each in gone:
            del self._states[each]
        self.failed &= kept
        self.good &= kept
        self._lists.clear()
        self._turns = {each: turn for each, turn in self._turns.items() if each in kept}
        return gone

    def has_others(self, endpoint: Endpoint) -> bool:
        """Whether a service has this endpoint and another one."""
        return endpoint in self._checked

    def state(self, endpoint: Endpoint) -> State:
        """Return what is known of an endpoint."""
        return self._states.get(endpoint) or State()

    def order(
        self, candidates: Sequence[Endpoint], spread: str, open_: Mapping[Endpoint, int]
    ) -> list[Endpoint]:
        """Return the candidates in the order in which a new connection tries them.

        ``open_`` tells how many connections lead to an endpoint. With ``spread`` "least" the fewest come
        first; of several, the one that came first the longest time ago.
        """
        if spread != "least":
            if not self.failed:
                return [*candidates]
            return sorted(candidates, key=self.failed.__contains__)
        turns = self._turns
        order = sorted(
            candidates,
            key=lambda each: (each in self.failed, open_.get(each, 0), turns.get(each, 0)),
        )
        self._turn += 1
        turns[order[0]] = self._turn
        return order

    def fail(self, endpoint: Endpoint, why: str, now: float) -> None:
        """Note that an endpoint did not answer."""
        state = self._states.setdefault(endpoint, State())
        if state.failed:
            state.why = why
            return
        state.failed, state.since, state.why = True, now, why
        state.back_off = BACK_OFF_FIRST
        state.due = now + state.back_off
        self.failed.add(endpoint)
        self.good.discard(endpoint)
        self._changed(endpoint, state)

    def answered(self, endpoint: Endpoint, now: float) -> None:
        """Note that an endpoint accepted a connection."""
        state = self._states.setdefault(endpoint, State())
        if not state.failed and state.since:
            return
        state.failed, state.since, state.why = False, now, ""
        self.failed.discard(endpoint)
        self.good.add(endpoint)
        self._changed(endpoint, state)

    def next_check(self) -> float | None:
        """Return when the next check is due; None when there is nothing to check."""
        return min((self._states[each].due for each in self.failed & self._checked), default=None)

    def to_check(self, now: float) -> list[Endpoint]:
        """Return the endpoints whose check is due, and count these checks as made."""
        due = [each for each in self.failed & self._checked if self._states[each].due <= now]
        for each in due:
            state = self._states[each]
            state.back_off = min(state.back_off * 2, BACK_OFF_MOST)
            state.due = now + state.back_off
        return sorted(due)

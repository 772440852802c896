"""The states of a bridge that the watcher keeps in order, and what leads from one to the next. Pure.

Theory of operation. Every bridge that has a service map has one record and is in one state. ``repair``
examines bridges and reports each finding as an event; ``step`` answers with the next state and with what to
do. One look is not enough to call the guards broken or the map deleted, because somebody may be half-way
through a change: a hook or another program that replaces its map, or the daemon, which makes the guards
follow the ports. So both have a state of their own that lasts for one more look.

| state       | event         | next state  | then                         |
| ----------- | ------------- | ----------- | ---------------------------- |
| UNKNOWN     | GUARDS_RIGHT  | IN_ORDER    | REMEMBER, EXAMINE_LINKS      |
| UNKNOWN     | GUARDS_WRONG  | SUSPECT     | REMEMBER, EXAMINE_LINKS, LOOK_AGAIN |
| IN_ORDER    | GUARDS_RIGHT  | IN_ORDER    | REMEMBER                     |
| IN_ORDER    | GUARDS_WRONG  | SUSPECT     | LOOK_AGAIN                   |
| IN_ORDER    | MAP_GONE      | MAP_MISSING | LOOK_AGAIN                   |
| IN_ORDER    | MAP_RESTORED  | BROKEN      | QUEUE_REPAIR                 |
| IN_ORDER    | LINKS_WRONG   | BROKEN      | QUEUE_REPAIR                 |
| IN_ORDER    | RETRY_DUE     | IN_ORDER    |                              |
| SUSPECT     | GUARDS_RIGHT  | IN_ORDER    | REMEMBER                     |
| SUSPECT     | GUARDS_WRONG  | BROKEN      | QUEUE_REPAIR                 |
| SUSPECT     | MAP_GONE      | MAP_MISSING | LOOK_AGAIN                   |
| SUSPECT     | MAP_RESTORED  | BROKEN      | QUEUE_REPAIR                 |
| SUSPECT     | LINKS_WRONG   | BROKEN      | QUEUE_REPAIR                 |
| SUSPECT     | RETRY_DUE     | SUSPECT     |                              |
| MAP_MISSING | GUARDS_RIGHT  | IN_ORDER    | REMEMBER, EXAMINE_LINKS      |
| MAP_MISSING | GUARDS_WRONG  | SUSPECT     | EXAMINE_LINKS, LOOK_AGAIN    |
| MAP_MISSING | MAP_GONE      | UNKNOWN     | FORGET                       |
| MAP_MISSING | MAP_RESTORED  | BROKEN      | QUEUE_REPAIR                 |
| MAP_MISSING | LINKS_WRONG   | MAP_MISSING |                              |
| MAP_MISSING | RETRY_DUE     | MAP_MISSING |                              |
| BROKEN      | MAP_RESTORED  | BROKEN      |                              |
| BROKEN      | REPAIRED      | IN_ORDER    | EXAMINE_LINKS, LOOK_AGAIN    |
| BROKEN      | REPAIR_FAILED | FAILED      | RETRY_LATER                  |
| BROKEN      | RETRY_DUE     | BROKEN      |                              |
| FAILED      | MAP_RESTORED  | BROKEN      | QUEUE_REPAIR                 |
| FAILED      | RETRY_DUE     | BROKEN      | QUEUE_REPAIR                 |

All other pairs cannot happen, and ``step`` refuses them. In particular, a bridge that is BROKEN or FAILED
is not examined: the repair compares everything by itself.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """How a bridge was found at the last look."""

    UNKNOWN = auto()  # it has no map, and no record
    IN_ORDER = auto()
    SUSPECT = auto()  # its guards were wrong once
    MAP_MISSING = auto()  # its map was gone once
    BROKEN = auto()  # its repair is due
    FAILED = auto()  # its repair failed, and is tried again later


class Event(Enum):
    """One finding about a bridge."""

    GUARDS_RIGHT = auto()  # and its map is there
    GUARDS_WRONG = auto()  # but its map is there
    MAP_GONE = auto()
    MAP_RESTORED = auto()  # by us, after somebody deleted the maps of all bridges
    LINKS_WRONG = auto()  # its veth pair or its namespace
    REPAIRED = auto()
    REPAIR_FAILED = auto()
    RETRY_DUE = auto()


class Step(Enum):
    """One thing to do because of an event."""

    REMEMBER = auto()  # its map and its uplinks, as they are now
    EXAMINE_LINKS = auto()  # in this look, or in the next one after a repair
    LOOK_AGAIN = auto()  # at its map and its guards, a little later
    QUEUE_REPAIR = auto()
    RETRY_LATER = auto()
    FORGET = auto()


_S, _E, _D = State, Event, Step

TABLE: dict[tuple[State, Event], tuple[State, tuple[Step, ...]]] = {
    (_S.UNKNOWN, _E.GUARDS_RIGHT): (_S.IN_ORDER, (_D.REMEMBER, _D.EXAMINE_LINKS)),
    (_S.UNKNOWN, _E.GUARDS_WRONG): (_S.SUSPECT, (_D.REMEMBER, _D.EXAMINE_LINKS, _D.LOOK_AGAIN)),
    (_S.IN_ORDER, _E.GUARDS_RIGHT): (_S.IN_ORDER, (_D.REMEMBER,)),
    (_S.IN_ORDER, _E.GUARDS_WRONG): (_S.SUSPECT, (_D.LOOK_AGAIN,)),
    (_S.IN_ORDER, _E.MAP_GONE): (_S.MAP_MISSING, (_D.LOOK_AGAIN,)),
    (_S.IN_ORDER, _E.MAP_RESTORED): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.IN_ORDER, _E.LINKS_WRONG): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.IN_ORDER, _E.RETRY_DUE): (_S.IN_ORDER, ()),
    (_S.SUSPECT, _E.GUARDS_RIGHT): (_S.IN_ORDER, (_D.REMEMBER,)),
    (_S.SUSPECT, _E.GUARDS_WRONG): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.SUSPECT, _E.MAP_GONE): (_S.MAP_MISSING, (_D.LOOK_AGAIN,)),
    (_S.SUSPECT, _E.MAP_RESTORED): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.SUSPECT, _E.LINKS_WRONG): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.SUSPECT, _E.RETRY_DUE): (_S.SUSPECT, ()),
    # Nobody looked at the links while the map was missing.
    (_S.MAP_MISSING, _E.GUARDS_RIGHT): (_S.IN_ORDER, (_D.REMEMBER, _D.EXAMINE_LINKS)),
    (_S.MAP_MISSING, _E.GUARDS_WRONG): (_S.SUSPECT, (_D.EXAMINE_LINKS, _D.LOOK_AGAIN)),
    (_S.MAP_MISSING, _E.MAP_GONE): (_S.UNKNOWN, (_D.FORGET,)),
    (_S.MAP_MISSING, _E.MAP_RESTORED): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.MAP_MISSING, _E.LINKS_WRONG): (_S.MAP_MISSING, ()),
    (_S.MAP_MISSING, _E.RETRY_DUE): (_S.MAP_MISSING, ()),
    (_S.BROKEN, _E.MAP_RESTORED): (_S.BROKEN, ()),
    # Its map may have been deleted while it was broken, and its namespace may have never been seen in order.
    (_S.BROKEN, _E.REPAIRED): (_S.IN_ORDER, (_D.EXAMINE_LINKS, _D.LOOK_AGAIN)),
    (_S.BROKEN, _E.REPAIR_FAILED): (_S.FAILED, (_D.RETRY_LATER,)),
    (_S.BROKEN, _E.RETRY_DUE): (_S.BROKEN, ()),
    (_S.FAILED, _E.MAP_RESTORED): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
    (_S.FAILED, _E.RETRY_DUE): (_S.BROKEN, (_D.QUEUE_REPAIR,)),
}

# States in which a bridge is compared with what is remembered of it.
EXAMINED = frozenset({State.UNKNOWN, State.IN_ORDER, State.SUSPECT, State.MAP_MISSING})


def step(state: State, event: Event) -> tuple[State, tuple[Step, ...]]:
    """The state after ``event``, and what to do, in this order. Raises KeyError where that cannot happen."""
    return TABLE[state, event]

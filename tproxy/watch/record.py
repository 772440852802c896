"""The record of one bridge that the watcher keeps in order, and the list of bridges to examine next. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tproxy.bridge import comments, guards, service_map
from tproxy.kernel.netlink import Ruleset
from tproxy.model import ServiceMap
from tproxy.watch.probe import Probe
from tproxy.watch.states import State


class Memory(NamedTuple):
    """A bridge as it was when it was last seen in good order."""

    map: ServiceMap
    uplinks: frozenset[str]  # those that a hook named
    ours: bool  # built by a hook, and not by another program in its own way


@dataclass
class Bridge:
    """The record of one bridge that is up."""

    name: str
    memory: Memory
    state: State = State.UNKNOWN
    probe: Probe | None = None  # None: whoever builds the bridge has not finished
    mac: str = ""  # of the veth in the namespace
    done: list[str] = field(default_factory=list)  # by a repair that has not succeeded yet
    said: str = ""  # the last line in the log, so that it is not repeated


@dataclass
class Doubts:
    """The bridges that the next look examines."""

    links: set[str] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)  # map and guards
    all_rules: bool = False
    maps_deleted: bool = False  # somebody deleted the table that holds all maps

    def __bool__(self) -> bool:
        return bool(self.links or self.rules or self.all_rules)


def bridges_in(change: Ruleset) -> tuple[set[str], bool]:
    """Return the bridges that a change of nftables concerns, and whether it may concern all."""
    words = map(comments.decode_words, change.comments)
    bridges = {each["bridge"] for each in words if "bridge" in each}
    others = set(change.names)
    for prefix in (
        service_map.MAP_PREFIX,
        service_map.SET_PREFIX,
        service_map.CARDS_PREFIX,
        service_map.OPTIONS_PREFIX,
        service_map.TYPED_PREFIX,
        service_map.TYPED_OPTIONS_PREFIX,
        guards.ARP_GUARD_PREFIX,
    ):
        mine = {name for name in others if name.startswith(prefix)}
        bridges |= {name.removeprefix(prefix) for name in mine}
        others -= mine
    if bridges:
        # The comments of their elements name the bridges.
        others -= {name for name in others if name in guards.SETS or name.startswith(guards.AT_PREFIX)}
    return bridges, bool(others)

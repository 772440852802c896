"""The bridges that a change of nftables makes doubtful."""

from __future__ import annotations

import pytest

from tproxy.kernel.netlink import Ruleset
from tproxy.watch.record import Doubts, bridges_in


@pytest.mark.parametrize(
    ("names", "comments", "bridges", "everything"),
    [
        ({"ep_br0"}, set(), {"br0"}, False),
        ({"ep_br0", "ch_br1"}, {"name=blue"}, {"br0", "br1"}, False),
        ({"veths", "guarded"}, {"bridge=br0", "bridge=a%3Db", "named=yes"}, {"br0", "a=b"}, False),
        ({"veths"}, set(), set(), True),  # an element without the comment that names its bridge
        ({"guard_forward", "ch_br0"}, set(), {"br0"}, True),
        ({"guard_forward"}, {"bridge=br0"}, {"br0"}, True),
        ({""}, set(), set(), True),  # a table
    ],
)
def test_a_change_concerns_the_bridges_that_it_names_or_all(
    names: set[str], comments: set[str], bridges: set[str], everything: bool
) -> None:
    change = Ruleset(frozenset(names), frozenset(comments), maps_deleted=False)
    assert bridges_in(change) == (bridges, everything)


@pytest.mark.parametrize(
    ("doubts", "due"),
    [
        (Doubts(), False),
        (Doubts(links={"br0"}), True),
        (Doubts(rules={"br0"}), True),
        (Doubts(all_rules=True), True),
        (Doubts(maps_deleted=True), False),  # all_rules comes with it
    ],
)
def test_a_look_is_due_when_a_bridge_is_doubtful(doubts: Doubts, due: bool) -> None:
    assert bool(doubts) == due

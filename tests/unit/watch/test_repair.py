"""mend: which bridges a change of the ruleset concerns."""

from __future__ import annotations

import pytest

from tproxy.kernel.netlink import Ruleset
from tproxy.watch.repair import _bridges_in


@pytest.mark.parametrize(
    ("names", "comments", "bridges", "everything"),
    [
        ({"ep_br0"}, set(), {"br0"}, False),
        ({"ep_br0", "ch_br1"}, {"name=blue"}, {"br0", "br1"}, False),
        ({"veths", "guarded"}, {"bridge=br0", "bridge=a%3Db", "named=yes"}, {"br0", "a=b"}, False),
        ({"veths"}, set(), set(), True),  # somebody else's element, or one whose comment is lost
        ({"guard_forward", "ch_br0"}, set(), {"br0"}, True),
        ({"guard_forward"}, {"bridge=br0"}, {"br0"}, True),
        ({""}, set(), set(), True),  # a table
    ],
)
def test_a_change_concerns_the_bridges_that_it_names_or_all(
    names: set[str], comments: set[str], bridges: set[str], everything: bool
) -> None:
    told = Ruleset(frozenset(names), frozenset(comments), maps_deleted=False)
    assert _bridges_in(told) == (bridges, everything)

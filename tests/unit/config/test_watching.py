"""The bridges that the watcher brings up, and the time for which they stay up without guests."""

from __future__ import annotations

import pytest

from tproxy.config.services import Config, WatchedBridge
from tproxy.config.watching import HOOKED_GRACE, grace, watched

BLUE = WatchedBridge("onebr1*", "blue")
REST = WatchedBridge("onebr*")


@pytest.mark.parametrize(
    ("bridge", "entry"),
    [
        ("onebr12", BLUE),
        ("onebr12.100", BLUE),
        ("onebr2", REST),
        ("Onebr2", None),
        ("xonebr1", None),
        ("onebr;2", None),  # we refuse that name
        ("onebr1234567890ab", None),
    ],
)
def test_the_first_entry_whose_pattern_matches_counts(bridge: str, entry: WatchedBridge | None) -> None:
    assert watched(bridge, (BLUE, REST)) == entry


@pytest.mark.parametrize(
    ("entry", "exists", "configured", "seconds"),
    [
        (BLUE, True, 5.0, 5.0),
        (BLUE, False, 5.0, 5.0),
        (None, False, 5.0, 5.0),
        (None, True, 5.0, HOOKED_GRACE),
        (None, True, 3600.0, 3600.0),
    ],
)
def test_a_bridge_that_only_hooks_bring_up_waits_longer(
    entry: WatchedBridge | None, exists: bool, configured: float, seconds: float
) -> None:
    config = Config("x", 20, (), (), watch_grace=configured)
    assert grace(entry, config, exists=exists) == seconds

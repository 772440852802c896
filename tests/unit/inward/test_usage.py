"""The sums of what HAProxy counts in tables that begin anew."""

from __future__ import annotations

from pathlib import Path

from tproxy.config.routes import RouteEntry
from tproxy.inward import usage
from tproxy.inward.usage import Count, Ledger

WEB = RouteEntry(1, "web", 80, "n", "10.0.0.5", owner="alice", port_tls=443)


def test_sums_grow_by_what_each_process_has_counted_since_the_last_look() -> None:
    ledger = Ledger({}, {}, "", {}).owned([WEB])
    for process, times in (("1", 2), ("1", 5), ("2", 1), ("2", 1), ("2", 4)):
        ledger = ledger.grown(process, {"tls/web/tls": Count(times, 10 * times, 0)})
    assert ledger.sums == {("alice", "tls", "web/tls"): Count(9, 90, 0)}


def test_uses_are_the_owners_of_their_time_and_a_removed_route_keeps_its_owner() -> None:
    ledger = Ledger({}, {}, "", {}).owned([WEB]).grown("1", {"http/web": Count(1)})
    ledger = ledger.owned([]).grown("1", {"http/web": Count(3)})
    ledger = ledger.owned([WEB._replace(owner="bob")]).grown("1", {"http/web": Count(4)})
    assert {key: count.times for key, count in usage.by_owner(ledger).items()} == {
        ("alice", "http"): 3,
        ("bob", "http"): 1,
    }
    assert 'owner="alice",kind="http",route="web"} 3\n' in usage.as_metrics(ledger)


def test_a_file_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    assert usage.read(str(tmp_path)) == Ledger({}, {}, "", {})
    (tmp_path / usage.FILE).write_text('{"sums": 3}')
    assert usage.read(str(tmp_path)) == Ledger({}, {}, "", {})

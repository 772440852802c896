"""What the gateway may serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.config import reader
from tproxy.errors import ConfigError
from tproxy.inward.names import ledger
from tproxy.inward.names.allowed import allowed, conflicts
from tproxy.inward.names.claims import Claim, Ledger

ROUTES = """
tproxy_routes:
- {id: a, owner: one, network: n, guest_addr: 10.0.0.5, port: 80, domain: www.example.org}
- {id: b, owner: two, network: n, guest_addr: 10.0.0.5, port: 80, domain: '*.example.org'}
- {id: c, owner: two, network: n, guest_addr: 10.0.0.5, port: 80, domain: www.example.org}
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TPROXY_NAMES_STATE", str(tmp_path))
    return tmp_path


def served(folder: Path, text: str) -> list[str]:
    (folder / "tproxy.yaml").write_text(text)
    return [each.id for each in allowed(reader.load(folder / "tproxy.yaml")).routes]


def test_without_zones_overlaps_of_owners_are_refused_in_the_order_of_the_file(state: Path) -> None:
    """fatedier/frp#2688: anyone claims any name."""
    assert served(state, ROUTES) == ["a"]
    said = [each.text for each in conflicts(reader.load(state / "tproxy.yaml"))]
    assert said == [
        "tproxy_routes: b: *.example.org overlaps www.example.org, which is one's",
        "tproxy_routes: c: www.example.org is one's, who had it first",
    ]


def test_with_zones_a_name_is_served_when_it_is_proved(state: Path) -> None:
    zones = "tproxy_zones: [{domain: example.org, owner: two}]\n"
    assert served(state, zones + ROUTES) == []
    ledger.save(state, Ledger({("example.org", "two"): Claim(proved=5)}))
    assert served(state, zones + ROUTES) == ["b", "c"]
    assert [each.text.split(":")[1] for each in conflicts(reader.load(state / "tproxy.yaml"))] == [" a"]


def test_zones_that_cannot_be_read_change_nothing(state: Path) -> None:
    with pytest.raises(ConfigError):
        served(state, "tproxy_zones: [{domain: example.org}]\n" + ROUTES)


def test_a_ledger_that_is_damaged_changes_nothing(state: Path) -> None:
    (state / ledger.FILE).write_text("{")
    with pytest.raises(ledger.LedgerError, match=r"ledger\.json is damaged"):
        served(state, ROUTES)


def test_tokens_follow_from_owner_and_key(state: Path) -> None:
    first = ledger.token(state, "one")
    assert first == ledger.token(state, "one") != ledger.token(state, "two")
    assert (state / ledger.PROOF_KEY).stat().st_mode & 0o777 == 0o600
    (state / ledger.PROOF_KEY).write_text("another key of enough characters\n")
    assert ledger.token(state, "one") != first

"""What follows from the facts about a node."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

from tproxy.egress.service.state import State, as_text, findings, metrics

MIRROR = {
    "mode": "dmz",
    "serial": 3,
    "bytes": 5_000_000,
    "quota": 9_000_000,
    "room": 4_000_000,
    "kept": 1,
    "wanted": 2,
    "hits": 1,
    "misses": 2,
    "denied": 3,
    "missing": 4,
    "failed": 5,
    "served_bytes": 6_000_000_000,
}
GOOD = State(
    "/etc/tproxy/egress.yaml",
    mode="dmz",
    rules=2,
    squid=7,
    mirror=MIRROR,
    fingerprint="AB:CD",
    valid_until="2036-01-01",
    signed=60,
    parts={"squid": True, "mirror": True, "front": True},
)


def test_a_node_in_order_has_no_findings() -> None:
    assert findings(GOOD) == []
    assert "wrong" not in "\n".join(as_text(GOOD))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (replace(GOOD, problem="egress.yaml:3: bad"), "the policy is not used: egress.yaml:3: bad"),
        (replace(GOOD, squid=None, parts={**GOOD.parts, "squid": False}), "squid does not run"),
        (replace(GOOD, silent=("proxy 127.0.0.1:8443",)), "nobody listens on proxy 127.0.0.1:8443"),
        (replace(GOOD, fingerprint=""), "there is no authority"),
        (replace(GOOD, warning="the authority expires"), "the authority expires"),
        (replace(GOOD, mode="sealed"), "the mirror is in mode dmz"),
        (replace(GOOD, mirror={**MIRROR, "room": 0}), "the store is full"),
        (replace(GOOD, signed=7201), "head was not signed"),
        (replace(GOOD, signed=None), "head was not signed"),
    ],
)
def test_each_fault_is_one_finding(state: State, words: str) -> None:
    (found,) = findings(state)
    assert words in found
    assert f"wrong: {found}" in as_text(state)


def test_figures_are_in_the_format_of_prometheus() -> None:
    text = metrics(GOOD)
    assert 'tproxy_egress_up{part="squid"} 1\n' in text
    assert "tproxy_egress_served_bytes_total 6000000000\n" in text
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")

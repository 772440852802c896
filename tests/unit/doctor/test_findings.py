"""Findings and steps as text, and that the pages explain each of them."""

from __future__ import annotations

import re

from tests.contract import DOCS, quoted, table
from tproxy.doctor.finding import CHECKS, Finding, hook_up, warning, worst
from tproxy.doctor.probe.step import Step
from tproxy.model import Member, Network, ServiceMap

OPERATING = DOCS / "operating.md"


def test_the_operating_guide_explains_each_check_in_the_order_of_the_report() -> None:
    cells = table("What doctor finds", "check", page=OPERATING).column("check")
    assert [name for cell in cells for name in quoted(f"`{cell}`".replace("``", "`"))] == list(CHECKS)


def test_the_operating_guide_explains_each_step_of_the_contract() -> None:
    row = table("Output of `probe`", "key").by_first_column()["steps[].name"]
    cells = table("What doctor finds", "step", page=OPERATING).column("step")
    assert [name for cell in cells for name in re.findall(r"[a-z]+", cell)] == quoted(row["value"])


def test_a_finding_is_one_line_of_ascii() -> None:
    line = str(Finding("file", "bad", "a\nname: \u00e9\x1b[2J", "tproxy refresh", "br0"))
    assert line == "bad      br0 file: a\\nname: \\xe9\\x1b[2J; repair: tproxy refresh"


def test_a_step_shows_milliseconds() -> None:
    step = Step("connect", "good", 0.01234, "connected", way="route", port=80)
    assert str(step) == "good          12.3 ms  route connect: connected"
    assert step.as_json()["milliseconds"] == 12.3


def test_the_worst_of_no_findings_is_good() -> None:
    assert worst([]) == "good"
    assert worst([warning("names", ""), Finding("names", "good", "")]) == "warning"


def test_the_repair_by_the_hook_names_network_guest_and_uplinks() -> None:
    """So that it changes neither the networks of the bridge nor its uplinks."""
    network = Network("vnet 1", "7")
    found = ServiceMap("br0", {}, network, {"02:00:00:00:00:01": Member(network)})
    assert hook_up("br0", found, uplinks=["eth1"], config="/x") == (
        "tproxy hook up --bridge br0 --network 'vnet 1' --network-id 7 --mac 02:00:00:00:00:01"
        " --uplink eth1 --config /x"
    )
    assert hook_up("br0", None) == "tproxy hook up --bridge br0 --network NETWORK"

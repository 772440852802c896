"""Findings and steps as text, and that the pages explain each of them."""

from __future__ import annotations

import re

import pytest

from tests.contract import DOCS, quoted, table
from tproxy.doctor.finding import BRIDGE, HOST_FIRST, HOST_LAST, Finding, hook_up, warning, worst
from tproxy.doctor.probe.step import Step
from tproxy.model import Member, Network, ServiceMap

PAGE = DOCS / "doctor.md"
PARTS = {"The host": HOST_FIRST, "A bridge": BRIDGE, "What is scarce on the host": HOST_LAST}


@pytest.mark.parametrize("part", PARTS)
def test_the_page_explains_each_check_in_the_order_of_the_report(part: str) -> None:
    text = PAGE.read_text().partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    _, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
    assert tuple(each.partition("\n")[0] for each in sections) == PARTS[part]
    for each in sections:
        # When it is bad, or a warning; what that means for guests; the repair.
        paragraphs = each.strip().split("\n\n")[1:]
        assert [len(re.findall(r"\*\*(Why it matters|Repair)\.\*\* ", one)) for one in paragraphs] == [
            0,
            1,
            1,
        ]
        assert re.search(r"\*\*(Bad|warning)\*\*", paragraphs[0])


def test_the_page_explains_each_step_of_the_contract() -> None:
    row = table("Output of `probe`", "key").by_first_column()["steps[].name"]
    cells = table("What probe meets", "step", page=PAGE).column("step")
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

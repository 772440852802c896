"""What cannot be caused in a lab: what a kernel lacks, and a neighbour table that is full."""

from __future__ import annotations

import pytest

from tproxy.doctor.finding import Finding
from tproxy.doctor.judge import host as judge
from tproxy.doctor.look.host import Host, Kernel


def of(name: str, found: list[Finding]) -> Finding:
    (finding,) = (each for each in found if each.check == name)
    return finding


@pytest.mark.parametrize(
    ("used", "level"), [(0, "good"), (819, "good"), (820, "warning"), (1023, "warning"), (1024, "bad")]
)
def test_a_neighbour_table_that_is_nearly_full_is_named(used: int, level: str) -> None:
    found = of("neighbours", judge.last(Host(neighbours=(used, 1024)), None))
    assert found.level == level
    assert bool(found.repair) == (level != "good")


@pytest.mark.parametrize(
    ("kernel", "level", "words"),
    [
        (Kernel(), "good", "it has all that tproxy uses"),
        (Kernel(guards="meta ibrname: they match by port names"), "good", "meta ibrname"),
        (Kernel(cookies=False), "good", "SO_NETNS_COOKIE (Linux 5.14)"),
        (Kernel(port_choice=False), "good", "IP_LOCAL_PORT_RANGE (Linux 6.3)"),
        (Kernel(guards="limit of nftables: guests can"), "warning", "guests can"),
        (Kernel(walls="family inet of nftables: walls let IPv6 pass"), "warning", "IPv6"),
        (Kernel(bridge_tables="Operation not supported"), "bad", "no nftables bridge tables"),
    ],
)
def test_what_a_kernel_lacks_is_named(kernel: Kernel, level: str, words: str) -> None:
    found = of("kernel", judge.first(Host(kernel=kernel)))
    assert found.level == level
    assert words in found.text
    assert bool(found.repair) == (level != "good")

"""The declarations of metrics: conventions of Prometheus, and the page that is made of them."""

from __future__ import annotations

import re

from prometheus_client.core import HistogramMetricFamily

from tproxy.datapath.counts import Counts, LoopTimes
from tproxy.metrics import declared, reference, rendering
from tproxy.metrics.facts import Bridge, Process, Service, Snapshot


def test_the_page_is_made_of_the_declarations() -> None:
    text = (reference.ROOT / reference.PAGE).read_text()
    assert text == reference.page(), "run make options"


def test_names_follow_the_conventions() -> None:
    assert len({each.name for each in declared.ALL}) == len(declared.ALL)
    for each in declared.ALL:
        assert re.fullmatch("tproxy_[a-z_]+", each.name)
        assert each.help.endswith(".")
        assert not each.name.endswith("_total")
        assert not re.search("milli|micro|_ms$|_kb$|_mb$", each.name)
        assert (each.kind == "histogram") == bool(each.bounds)
        assert list(each.bounds) == sorted(each.bounds)
        assert set(each.labels) <= set(declared.LABELS)
        for word in each.values:
            assert word in declared.MEANINGS or each.labels[-1] not in ("outcome", "reason")


def test_the_number_of_series_of_a_service_is_as_the_page_says() -> None:
    tcp = Service("br0", "n", "s:1", True, Counts(), ())
    udp = Service("br0", "n", "s:1/udp", True, Counts(), (), udp=True)
    none, of_tcp, of_udp = (
        sum(len(family.samples) for family in rendering.families(Snapshot(True, services=services)))
        for services in ((), (tcp,), (udp,))
    )
    assert of_tcp - none == reference.series_of_a_service("tcp")
    assert of_udp - none == reference.series_of_a_service("udp")


def test_all_families_come_in_the_order_of_the_declarations() -> None:
    snapshot = Snapshot(
        True,
        "1",
        1.0,
        (Bridge("br0", "n", True, 1, (2, 3)),),
        (Service("br0", "n", "s:1", True, Counts(), (("10.0.0.1:80", True),)),),
        1,
        (("daemon", LoopTimes()),),
        (Process("daemon", most_fds=5),),
    )
    assert [each.name for each in rendering.families(snapshot)] == [each.name for each in declared.ALL]


def test_buckets_include_all_lower_ones() -> None:
    times = LoopTimes(10, 1.5, (1, 0, 0, 2, 0, 0, 3))
    (family,) = (
        each
        for each in rendering.families(Snapshot(True, loops=(("worker", times),)))
        if each.name == declared.LAG.name
    )
    assert isinstance(family, HistogramMetricFamily)
    values = [sample.value for sample in family.samples]
    assert values == [4, 5, 5, 5, 7, 7, 7, 10, 10, 1.5]


def test_names_that_would_break_a_line_are_escaped() -> None:
    odd = Service('b"r', "a\\b\nc", "s:1", True, Counts(), ())
    text = rendering.render(Snapshot(True, services=(odd,))).decode()
    assert r'bridge="b\"r",network="a\\b\nc"' in text

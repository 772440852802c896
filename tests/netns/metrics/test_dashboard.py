"""The dashboard in etc/grafana and the alert rules in etc/prometheus, with a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netns.metrics.prometheus import RULES, Prometheus
from tests.netns.metrics.scraped import PORT, Scraped
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor
from tproxy.metrics import declared

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[3] / "etc/grafana/tproxy.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def filled_in(expression: str) -> str:
    """The expression as Grafana asks it, with all values chosen, and a short interval."""
    text = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$\w+", ".*", text)


@pytest.fixture(scope="module")
def host(real_kernel: None) -> Iterator[Scraped]:
    with Hypervisor() as hypervisor:
        scraped = Scraped(hypervisor)
        scraped.serve()
        yield scraped


@pytest.fixture(scope="module")
def prometheus(host: Scraped) -> Prometheus:
    found = Prometheus(host.host, f"127.0.0.1:{PORT}")
    for port in (5030, 5031, 5032):
        host.ask(port)
    host.send(5353, (0, "x"))
    return found


def test_every_panel_shows_something(prometheus: Prometheus, host: Scraped) -> None:
    expressions = {
        (panel["title"], target["refId"]): filled_in(target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    }
    assert len(expressions) > 20
    for _ in eventually():  # rates need two scrapes
        host.ask()
        host.send(5354, (0, "x"))
        results = prometheus.queries(list(expressions.values()))
        empty = [
            where
            for where, result in zip(expressions, results, strict=True)
            if not result or all(each["value"][1] == "NaN" for each in result)
        ]
        if not empty:
            break


def test_the_variables_of_the_dashboard_have_values(prometheus: Prometheus) -> None:
    for each in DASHBOARD["templating"]["list"]:
        if each["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", each["definition"])
            assert found is not None
            for _ in eventually():  # until Prometheus has seen what the services did
                series = prometheus.query(filled_in(found[1]))
                if any(one["metric"].get(found[2]) for one in series):
                    break


def test_every_metric_is_on_the_dashboard(host: Scraped) -> None:
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    not_shown = {each.full_name for each in declared.ALL if each.full_name not in shown}
    # Whether a relay runs is an alert, and shows in the ports that do not listen.
    assert not_shown == {"tproxy_start_time_seconds", "tproxy_relay_up"}


def test_prometheus_evaluates_each_rule_and_each_expression_in_it(prometheus: Prometheus) -> None:
    groups: list[Any] = []
    for _ in eventually():
        (answer,) = prometheus.ask("/api/v1/rules")
        groups = answer["groups"]
        if groups and all(rule["health"] == "ok" for rule in groups[0]["rules"]):
            break
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert [each["name"] for each in groups[0]["rules"]] == [each["alert"] for each in rules]
    prometheus.queries([each["expr"] for each in rules])
    # Without its threshold, each has a value on this host.
    bare = [re.sub(r" (==|>) [\d.]+$", "", each["expr"].strip()) for each in rules]
    named = dict(zip((each["alert"] for each in rules), bare, strict=True))
    del named["TproxyServiceNotListening"], named["TproxyEndpointDown"]  # these join two conditions
    for _ in eventually():
        results = dict(zip(named, prometheus.queries(list(named.values())), strict=True))
        if all(results.values()):
            break


def test_alerts_are_pending_when_something_is_wrong(prometheus: Prometheus, host: Scraped) -> None:
    for _ in eventually():
        if "TproxyServiceWithoutEndpoint" in prometheus.alerts():
            break
        host.ask(5031)  # its endpoint refuses
    assert "TproxyDown" not in prometheus.alerts()
    host.host.tproxy("stop")
    for _ in eventually():
        if prometheus.alerts().get("TproxyDown") == "pending":
            break
    host.host.tproxy("start")
    for _ in eventually():
        if "TproxyDown" not in prometheus.alerts():
            break

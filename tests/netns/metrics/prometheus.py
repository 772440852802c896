"""A real Prometheus in a stand-in hypervisor, which scrapes tproxy and evaluates our rules."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor

RULES = Path(__file__).parents[3] / "etc/prometheus/tproxy.rules.yml"
ADDRESS = "127.0.0.1:9090"

CONFIG = """\
global: {scrape_interval: 1s,  evaluation_interval: 1s}
rule_files: [/run/prometheus/tproxy.rules.yml]
scrape_configs:
- job_name: tproxy
  static_configs: [{targets: ["%s"]}]
"""


class Prometheus:
    """Scrapes ``target``, an address and port, each second."""

    def __init__(self, host: Hypervisor, target: str) -> None:
        if shutil.which("prometheus") is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs prometheus")
        self._host = host
        config = host.write("/run/prometheus/prometheus.yml", CONFIG % target)
        host.write("/run/prometheus/tproxy.rules.yml", RULES.read_text())
        host.popen(
            "prometheus",
            f"--config.file={config}",
            "--storage.tsdb.path=/run/prometheus/data",
            f"--web.listen-address={ADDRESS}",
            "--log.level=error",
        )
        for _ in eventually():
            with suppress(ProcessError):  # it does not listen yet
                (answer,) = self.ask(_query("tproxy_up"))
                if answer.get("result"):  # it refuses while it is not ready
                    return

    def ask(self, *paths: str) -> list[Any]:
        """Return the data of each answer; an object with ``error`` where Prometheus refuses."""
        asked = self._host.run(*program("prometheus_api", ADDRESS), input=json.dumps(paths))
        found: list[Any] = json.loads(asked.stdout)
        return found

    def queries(self, expressions: list[str]) -> list[Any]:
        """Return the series of each expression now; raises AssertionError for one that is wrong."""
        answers = self.ask(*map(_query, expressions))
        for expression, answer in zip(expressions, answers, strict=True):
            assert "error" not in answer, f"{expression}: {answer['error']}"
        return [answer["result"] for answer in answers]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.queries([expression])[0]
        return found

    def alerts(self) -> dict[str, str]:
        """The alerts that are pending or fire, with their state."""
        (answer,) = self.ask("/api/v1/alerts")
        return {each["labels"]["alertname"]: each["state"] for each in answer["alerts"]}


def _query(expression: str) -> str:
    return f"/api/v1/query?{urlencode({'query': expression})}"

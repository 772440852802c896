"""The alert rules in etc/prometheus, evaluated by promtool, which comes with Prometheus."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.metrics.alerts import CASES
from tproxy.metrics import declared

RULES = Path(__file__).parents[3] / "etc/prometheus/tproxy.rules.yml"
RULE_LIST: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]

NAMES = {each.full_name for each in declared.ALL}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs promtool")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    done = promtool("check", "rules", os.fspath(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    annotations = {each["alert"]: each["annotations"] for each in RULE_LIST}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [
                {
                    "eval_time": f"{case.at}m",
                    "alertname": case.alert,
                    "exp_alerts": [] if case.labels is None else [{"exp_labels": case.labels}],
                }
            ],
        }
        for case in CASES
    ]
    # promtool compares annotations too; what they say is a matter for readers.
    rules = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        del rule["annotations"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    done = promtool("test", "rules", os.fspath(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {case.alert for case in CASES if case.labels is not None} == annotations.keys()


def test_alerts_use_declared_metrics_and_labels_that_these_have() -> None:
    for rule in RULE_LIST:
        text = " ".join([rule["expr"], *rule["annotations"].values()])
        used = set(re.findall(r"\btproxy_[a-z_]+", rule["expr"]))
        stems = {re.sub("_(bucket|count|sum)$", "", each) for each in used}
        assert stems <= NAMES, rule["alert"]
        labels = {label for each in declared.ALL if each.full_name in stems for label in each.labels}
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels | {"instance"}, rule["alert"]

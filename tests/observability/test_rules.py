"""The alerts: what fires them and what does not, and that each has its paragraph in the runbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Promtool
from .files import RULES, alerts, rules

TESTS = Path(__file__).with_name("alerts.yaml")
ALERTS = {rule["alert"]: rule for rule in alerts()}


def test_prometheus_takes_the_rules(promtool: Promtool) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_alerts_fire_when_they_should_and_only_then(promtool: Promtool) -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_firing_and_quiet(name: str) -> None:
    cases: list[dict[str, Any]] = [
        case
        for test in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert any(case.get("exp_alerts") for case in cases)
    assert any(not case.get("exp_alerts") for case in cases)

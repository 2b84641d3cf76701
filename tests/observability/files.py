"""The rules and the dashboard, as what Prometheus is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.conftest import ROOT

FILES = ROOT / "helm" / "leoserve" / "files"
RULES = FILES / "rules.yaml"
DASHBOARD = FILES / "dashboard.json"
RUNBOOK = ROOT / "docs" / "runbook.md"

Panel = dict[str, Any]


def rules() -> list[dict[str, Any]]:
    """Every rule of every group, recording and alerting."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def panels() -> list[Panel]:
    """All but the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """What each panel asks: its title with the query's letter, and the expression."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def filled(expression: str, **variables: str) -> str:
    """The expression with Grafana's variables replaced: all of everything, and rates over a minute, where `variables`
    say nothing else. Raises KeyError for a variable that the dashboard does not have."""
    values = {"namespace": ".*", "job": ".+", "model": ".+", "instance": ".+", "__rate_interval": "1m"} | variables
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], expression)

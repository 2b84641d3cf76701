"""The runbook: a paragraph for each alert, which names nothing that there is not."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import yaml

from leoserve.api.record import Record
from leoserve.metrics import Metrics, Rejection
from leoserve.settings import Settings
from tests.conftest import ROOT

from .files import RUNBOOK, alerts, panels

CHART = ROOT / "helm" / "leoserve"
ALERTS = {rule["alert"]: rule for rule in alerts()}
PROSE = re.sub(r"```.*?```", "", RUNBOOK.read_text(encoding="utf-8"), flags=re.DOTALL)


def read(name: str) -> dict[str, Any]:
    """A YAML file of the chart."""
    return dict(yaml.safe_load((CHART / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_paragraph(name: str) -> None:
    url = f"{read('Chart.yaml')['home']}/blob/main/docs/{RUNBOOK.name}#{name.lower()}"
    assert ALERTS[name]["annotations"]["runbook_url"] == url
    severity = ALERTS[name]["labels"]["severity"]
    _, _, rest = PROSE.partition(f"\n## {name}\n")
    paragraph = rest.partition("\n## ")[0]
    assert paragraph.strip().startswith(f"{severity}: ")
    for part in ("**For users**", "**Look first**", "**Usual causes**", "**What to do**"):
        assert part in paragraph, part


def test_the_alerts_it_tells_of_are_those_that_there_are() -> None:
    assert set(re.findall(r"Leoserve[A-Z]\w+", PROSE)) == set(ALERTS)
    for name, anchor in re.findall(r"\[(\w+)\]\(#(\w+)\)", PROSE):
        assert anchor == name.lower()


def test_the_panels_it_names_are_on_the_dashboard() -> None:
    named = {" ".join(words.split()) for words in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", PROSE)}
    assert named
    assert named <= {panel["title"] for panel in panels()}


def test_the_options_fields_and_values_it_names_exist() -> None:
    code = set(re.findall(r"`([^`\s]+)`", PROSE))
    fields = Record(Metrics(), "id", "chat").fields(200, 0.0).keys()
    known = {*Settings.model_fields, *fields, *get_args(Rejection), "rule_files"}
    assert {word for word in code if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)} <= known | {"cache_salt"}
    values = read("values.yaml")
    for group, value in re.findall(r"`([a-zA-Z]+)\.([a-zA-Z]+)`", PROSE):
        assert value in ("json", "yaml") or value in values[group], f"{group}.{value}"

"""The dashboard as a file: what Grafana needs of it, and that Prometheus can read all that it asks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Promtool
from .files import Panel, alerts, dashboard, filled, panels, queries

COLUMNS = 24  # of Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANELS = {panel["title"]: panel for panel in panels()}


def test_ids_and_titles_are_unique() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len({panel["title"] for panel in every}) == len(every)


def test_the_rows_are_the_questions_in_their_order() -> None:
    rows = [panel for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows] == ["Are users happy?", "Why not?", "What is full?"]
    assert [row["gridPos"]["y"] for row in rows] == sorted(row["gridPos"]["y"] for row in rows)


def test_no_panel_lies_on_another_or_off_the_grid() -> None:
    every = dashboard()["panels"]
    for panel in every:
        place = panel["gridPos"]
        assert min(place.values()) >= 0
        assert place["x"] + place["w"] <= COLUMNS
    for one, other in combinations(every, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_says_what_it_shows_in_which_unit(panel: Panel) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert len(panel["description"]) > 30
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert all(target["legendFormat"] for target in panel["targets"]) or panel["type"] in ("stat", "table")


def test_all_data_comes_from_the_chosen_prometheus_and_the_chosen_servers() -> None:
    board = dashboard()
    asking = panels() + [target for panel in panels() for target in panel["targets"]]
    asking += board["annotations"]["list"] + [one for one in board["templating"]["list"] if one["type"] == "query"]
    assert all(one["datasource"] == SOURCE for one in asking)
    for name, expression in queries():
        chosen = expression.count('{namespace=~"$namespace", job=~"$job", instance=~"$instance"')
        assert chosen == expression.count("{"), name


def test_each_variable_is_declared_before_it_is_used() -> None:
    known = {"__rate_interval": "1m"}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            only(variable["query"]["query"], known)
        known[variable["name"]] = ".*"
    for _, expression in queries():
        only(expression, known)


def only(expression: str, known: dict[str, Any]) -> None:
    """Fails where the expression has a variable that is not `known`."""
    left = expression
    for name in sorted(known, key=len, reverse=True):
        left = left.replace(f"${name}", "")
    assert "$" not in left, expression


def test_prometheus_can_read_every_query(promtool: Promtool, tmp_path: Path) -> None:
    annotations = [one["expr"] for one in dashboard()["annotations"]["list"]]
    asked = [*(expression for _, expression in queries()), *annotations]
    recorded = [{"record": f"panel:query:{place}", "expr": filled(one)} for place, one in enumerate(asked)]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), encoding="utf-8")
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_panel_that_names_an_alert_names_one_that_there_is() -> None:
    names = {rule["alert"] for rule in alerts()}
    told = {word.strip(".:,") for panel in panels() for word in panel["description"].split() if "Leoserve" in word}
    assert told
    assert told <= names

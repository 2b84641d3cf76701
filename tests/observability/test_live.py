"""A real Prometheus that scrapes a real server under load: each panel has data, each rule is evaluated, and what
autoscalers ask has an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.conftest import Serve, Server
from tests.helm.engine import NAMESPACE, render

from .conftest import found
from .files import RULES, alerts, dashboard, filled, queries, rules
from .load import load
from .prometheus import INTERVAL, Prometheus, prometheus

# Small enough that answers wait, are refused, and are interrupted for want of blocks.
SMALL = ("--max-num-seqs", "6", "--max-waiting-requests", "4", "--num-kv-blocks", "40", "--no-log-requests")
ENGINE, WORKER = "leoserve.engine.process", "leoserve.workers.process"
RESTARTS = {  # counter and alert, by who dies
    ENGINE: ("leoserve_engine_restarts_total", "LeoserveRestarting"),
    WORKER: ("leoserve_api_worker_restarts_total", "LeoserveWorkersRestarting"),
}
# The chart, by who scales.
SCALED = {
    by: render({"autoscaling": {"by": by, "prometheus": "http://prometheus"}, "podMonitor": {"enabled": True}})
    for by in ("keda", "hpa")
}
PLAIN = "leoserve"  # the job of a plain Prometheus, without a namespace
OPERATED = f"{NAMESPACE}/{SCALED['keda'].one('PodMonitor')['metadata']['name']}"  # as its operator calls it
QUERIES = dict(queries())
COUNTED = (
    "leoserve_preemptions_total",
    'leoserve_requests_rejected_total{reason="overloaded"}',
    'leoserve_requests_finished_total{reason="length"}',
    "leoserve_prefix_cache_hits_total",
)
ZERO = {"Restarts within an hour B"}  # the server itself stays up


@dataclass
class Observed:
    """What was seen between two times in Unix seconds."""

    prometheus: Prometheus
    start: float
    end: float

    def values(self, expression: str) -> list[float]:
        """All numbers that the expression had."""
        series = self.prometheus.range(expression, self.start, self.end)
        return [value for _, points in series for _, value in points if math.isfinite(value)]


def pod_labels() -> dict[str, str]:
    """Of a target that Prometheus' operator has made of a pod of the chart's Deployment."""
    (pod,) = SCALED["keda"].serving
    name = f"{pod.owner['metadata']['name']}-7d9f8b6c5-x2x4k"
    return {"namespace": NAMESPACE, "pod": name, "container": pod.server["name"], "endpoint": "http"}


def until(condition: Callable[[], object]) -> None:
    """Poll without a deadline of its own: the test's is the limit."""
    while not condition():
        time.sleep(0.1)


def kill(server: Server, module: str) -> None:
    """One of the server's processes that run this module."""
    children = psutil.Process(server.process.pid).children()
    next(child for child in children if module in child.cmdline()).kill()


def firing(alert: str) -> str:
    return f'ALERTS{{alertname="{alert}", alertstate="firing"}}'


@pytest.fixture(scope="module")
def observed(serve_once: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A load in which answers are generated, refused and interrupted, and an engine and a worker die twice each."""
    program = found("prometheus")
    server = serve_once(None, *SMALL, "--api-workers", "2")
    address = server.url.removeprefix("http://")
    jobs = {PLAIN: {"targets": [address]}, OPERATED: {"targets": [address], "labels": pod_labels()}}
    with prometheus(program, tmp_path_factory.mktemp("prometheus"), jobs, RULES) as asked:
        start = time.time()
        for counter, _ in RESTARTS.values():
            until(lambda counter=counter: asked.number(f"count({counter})") == len(jobs))  # an increase has a start
        with load(server.url):
            for series in COUNTED:
                until(lambda series=series: asked.number(f"min({series})") >= 2)
            for deaths in (1, 2):
                for module, (counter, _) in RESTARTS.items():
                    kill(server, module)
                    until(lambda counter=counter, deaths=deaths: asked.number(f"min({counter})") >= deaths)
                until(lambda: asked.number("min(leoserve_ready)"))
            for _, alert in RESTARTS.values():
                until(lambda alert=alert: asked.number(firing(alert)) == len(jobs))
            until(lambda: asked.number('min(rate(leoserve_responses_total{status="200"}[3s]))'))
        yield Observed(asked, start, time.time())


@pytest.mark.parametrize("name", QUERIES)
def test_a_panel_has_data(observed: Observed, name: str) -> None:
    for job in (PLAIN, OPERATED):
        values = observed.values(filled(QUERIES[name], job=job, __rate_interval=f"{4 * INTERVAL}s"))
        assert values, job
        assert (max(values) == 0) == (name in ZERO), job


def test_the_variables_find_the_servers(observed: Observed) -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            call = filled(variable["query"]["query"]).removeprefix("label_values(").removesuffix(")")
            selector, _, label = call.rpartition(", ")
            assert observed.prometheus.get(f"label/{label}/values", **{"match[]": selector}), variable["name"]


def test_alerts_are_shown_over_the_panels(observed: Observed) -> None:
    (annotation,) = dashboard()["annotations"]["list"]
    assert observed.values(filled(annotation["expr"], job=PLAIN))


def test_every_rule_is_evaluated_and_has_what_it_needs(observed: Observed) -> None:
    evaluated = [rule for group in observed.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in evaluated} == {rule.get("record", rule.get("alert")) for rule in rules()}
    assert {rule["health"] for rule in evaluated} == {"ok"}, [rule.get("lastError") for rule in evaluated]
    for rule in rules():
        if "record" in rule:
            jobs = {labels["job"] for labels, _ in observed.prometheus.now(rule["record"])}
            assert jobs == {PLAIN, OPERATED}, rule["record"]


@pytest.mark.parametrize("alert", [alert for _, alert in RESTARTS.values()])
def test_what_dies_twice_fires_its_alert(observed: Observed, alert: str) -> None:
    fired = observed.prometheus.now(firing(alert))
    assert {labels["job"] for labels, _ in fired} == {PLAIN, OPERATED}
    (told,) = [one for one in alerts() if one["alert"] == alert]
    assert told["labels"].items() <= fired[0][0].items()


@pytest.mark.parametrize(
    "trigger", SCALED["keda"].one("ScaledObject")["spec"]["triggers"], ids=lambda trigger: trigger["name"]
)
def test_what_keda_asks_has_an_answer(observed: Observed, trigger: dict[str, Any]) -> None:
    query = trigger["metadata"]["query"]
    assert len(observed.prometheus.now(query)) == 1
    assert max(observed.values(query)) > 0


@pytest.mark.parametrize(
    "metric",
    SCALED["hpa"].one("HorizontalPodAutoscaler")["spec"]["metrics"],
    ids=lambda metric: metric["pods"]["metric"]["name"],
)
def test_the_metrics_of_the_horizontal_autoscaler_exist_with_a_pods_labels(
    observed: Observed, metric: dict[str, Any]
) -> None:
    labels = ", ".join(f'{name}="{value}"' for name, value in pod_labels().items() if name in ("namespace", "pod"))
    assert max(observed.values(f"{metric['pods']['metric']['name']}{{{labels}}}")) > 0

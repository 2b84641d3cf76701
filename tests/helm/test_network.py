"""Who reaches whom: selectors, ports, the network policy, and what several models in one release share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm import schemas
from tests.helm.engine import KUBE_VERSIONS, Pod, Rendering, at, chart, merged, render, selects
from tests.helm.test_examples import NAMES, rendered

GROUP = {"nodes": 2, "gpu": {"count": 8}}
EVERYTHING: dict[str, Any] = {
    "replicas": 2,
    "podMonitor": {"enabled": True},
    "ingress": {"enabled": True, "hosts": ["leo.example.org"]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
    "inferencePool": {"enabled": True, "endpointPicker": "picker"},
}
TWO = {
    "models": {
        "small": {"ingress": {"hosts": ["small.example.org"]}, "httpRoute": {"path": "/small"}},
        "large": {
            "model": {"hub": {"id": "LeoLM/leo-hessianai-13b-chat"}},
            "ingress": {"hosts": ["large.example.org"]},
            "httpRoute": {"path": "/large"},
        },
    }
}


def taken(rendering: Rendering, labels: dict[str, str]) -> list[Pod]:
    """The pods that a selector of equal labels takes."""
    return [pod for pod in rendering.pods if selects({"matchLabels": labels}, pod.metadata["labels"])]


def role(pod: Pod) -> str:
    return str(pod.metadata["labels"]["app.kubernetes.io/component"])


@pytest.mark.parametrize("name", NAMES)
def test_each_service_leads_to_the_leaders_of_one_deployment(name: str) -> None:
    rendering = rendered(name, "1.34")
    reached = []
    for service in rendering.of("Service"):
        (pod,) = taken(rendering, service["spec"]["selector"])
        assert role(pod) == "server"
        ports = {port["name"] for port in pod.server["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        reached.append(pod.owner["metadata"]["name"])
    servers = [pod.owner["metadata"]["name"] for pod in rendering.serving if role(pod) == "server"]
    assert sorted(reached) == sorted(servers)


def test_a_groups_own_service_is_left_to_its_controller() -> None:
    """It makes a headless one of the set's name, unless one of that name is there; with it goes each pod's name."""
    rendering = render(GROUP)
    group = rendering.one("LeaderWorkerSet")["metadata"]["name"]
    assert group not in {one["metadata"]["name"] for one in rendering.of("Service")}
    assert f"leaderworkerset/{group} " in rendering.notes


def test_a_groups_workers_are_reached_by_nobody_outside() -> None:
    rendering = render(merged(GROUP, at("podMonitor.enabled", True)))
    leader, worker = rendering.serving
    assert (role(leader), role(worker)) == ("server", "worker")
    assert taken(rendering, rendering.one("Service")["spec"]["selector"]) == [leader]
    assert "ports" not in worker.server
    assert not {"startupProbe", "readinessProbe", "livenessProbe"} & worker.server.keys()
    spec = rendering.one("LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    assert (spec["size"], spec["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    inside = [rule for rule in rendering.one("NetworkPolicy")["spec"]["ingress"] if "ports" not in rule]
    assert any(selects(peer["podSelector"], worker.metadata["labels"]) for rule in inside for peer in rule["from"])


@pytest.mark.parametrize("values", [EVERYTHING, merged(EVERYTHING, TWO)], ids=["one model", "two models"])
def test_everything_that_selects_pods_finds_them(values: dict[str, Any]) -> None:
    rendering = render(values)
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "InferencePool", "PodMonitor", "Deployment"):
        found = rendering.of(kind)
        assert found, kind
        for one in found:
            spec = one["spec"]
            selector = spec["podSelector"] if kind == "NetworkPolicy" else spec["selector"]
            pods = [pod for pod in rendering.serving if selects(selector, pod.metadata["labels"])]
            own = [pod for pod in pods if pod.owner["metadata"]["name"] == one["metadata"]["name"]]
            assert pods == (rendering.serving if kind == "PodMonitor" else own), kind
            assert pods, kind
            assert not any(selects(selector, pod.metadata["labels"]) for pod in rendering.pods if pod not in pods)
    for pod in rendering.serving:
        for spread in pod.spec["topologySpreadConstraints"]:
            assert selects(spread["labelSelector"], pod.metadata["labels"])


def test_a_service_monitor_finds_the_services_and_their_port() -> None:
    rendering = render(merged(TWO, at("serviceMonitor.enabled", True)))
    monitor = rendering.one("ServiceMonitor")["spec"]
    services = rendering.of("Service")
    assert len(services) == 2
    for service in services:
        assert selects(monitor["selector"], service["metadata"]["labels"])
        assert {point["port"] for point in monitor["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}


def test_what_leads_to_the_server_names_what_is_there() -> None:
    rendering = render(merged(EVERYTHING, at("inferencePool.enabled", False)))
    service = rendering.one("Service")
    name, ports = service["metadata"]["name"], service["spec"]["ports"]
    (rule,) = rendering.one("Ingress")["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == name
    assert backend["port"]["name"] in {port["name"] for port in ports}
    (route,) = rendering.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (route["name"], route["port"]) == (name, ports[0]["port"])


def test_a_pool_gets_the_route_and_leads_to_the_servers_port() -> None:
    rendering = render(EVERYTHING)
    pool = rendering.one("InferencePool")
    (route,) = rendering.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (route["group"], route["kind"], route["name"]) == (
        "inference.networking.k8s.io",
        "InferencePool",
        pool["metadata"]["name"],
    )
    (pod,) = rendering.serving
    numbers = [port["containerPort"] for port in pod.server["ports"]]
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == numbers
    assert pool["spec"]["endpointPickerRef"]["failureMode"] == "FailOpen"
    assert pod.metadata["labels"]["llm-d.ai/engine-type"] == "vllm"


def test_the_policy_denies_all_but_what_it_names() -> None:
    rendering = render()
    policy = rendering.one("NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    (inward,) = policy["ingress"]
    assert [port["port"] for port in inward["ports"]] == ["http"]
    (hook,) = [pod for pod in rendering.pods if pod not in rendering.serving]
    assert any(selects(peer.get("podSelector", {}), hook.metadata["labels"]) for peer in inward["from"])
    assert all(peer for peer in inward["from"])  # an empty one would be everybody
    names, hub = policy["egress"]
    assert {port["port"] for port in names["ports"]} >= {53}
    assert [port["port"] for port in hub["ports"]] == [443]


@pytest.mark.parametrize(
    "model",
    [{"source": "bundled"}, {"source": "pvc", "pvc": {"claim": "models", "path": "leo"}}],
    ids=["bundled", "pvc"],
)
def test_pods_that_download_nothing_talk_to_nobody(model: dict[str, Any]) -> None:
    rendering = render({"model": model})
    (names,) = rendering.one("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53, 5353}
    assert "initContainers" not in rendering.serving[0].spec


def test_selectors_outlive_every_label_that_can_be_given() -> None:
    """They are immutable: an upgrade that changed them would be refused by the cluster."""
    more = {
        "podLabels": {"team": "a"},
        "commonLabels": {"cost-centre": "7"},
        "image": {"tag": "9.9.9"},
        "options": {"max_num_seqs": 3},
    }
    before, after = (render(values).one("Deployment")["spec"] for values in ({}, more))
    assert before["selector"] == after["selector"]
    assert after["template"]["metadata"]["labels"].items() >= {"team": "a", "cost-centre": "7"}.items()


def test_several_models_share_no_name_and_no_pod() -> None:
    rendering = render(merged(EVERYTHING, TWO))
    named = [(one["kind"], one["metadata"]["name"]) for one in rendering.objects]
    assert len(named) == len(set(named))
    small, large = rendering.serving
    assert small.spec["volumes"] != large.spec["volumes"]
    for one, other in ((small, large), (large, small)):
        selector = one.owner["spec"]["selector"]
        assert selects(selector, one.metadata["labels"])
        assert not selects(selector, other.metadata["labels"])
    options = {one["metadata"]["name"]: one["data"]["options.yaml"] for one in rendering.of("ConfigMap")}
    assert "13b" in options["leo-large-options"]
    assert "13b" not in options["leo-small-options"]


def test_two_releases_in_a_namespace_share_no_pod() -> None:
    one, two = (render(name=name) for name in ("leo", "leo-two"))
    for mine, other in ((one, two), (two, one)):
        selector = {"matchLabels": mine.one("Service")["spec"]["selector"]}
        assert not any(selects(selector, pod.metadata["labels"]) for pod in other.pods)
    assert not {(o["kind"], o["metadata"]["name"]) for o in one.objects} & {
        (o["kind"], o["metadata"]["name"]) for o in two.objects
    }


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"autoscaling": {"by": "hpa"}}, "HorizontalPodAutoscaler"),
        ({"autoscaling": {"by": "keda", "prometheus": "http://prometheus:9090"}}, "ScaledObject"),
        ({"replicas": 2}, "PodDisruptionBudget"),
        ({"ingress": {"enabled": True, "hosts": ["leo.example.org"]}}, "Ingress"),
        ({"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}, "HTTPRoute"),
        ({"inferencePool": {"enabled": True, "endpointPicker": "picker"}}, "InferencePool"),
        ({"podMonitor": {"enabled": True}}, "PodMonitor"),
        ({"serviceMonitor": {"enabled": True}}, "ServiceMonitor"),
        ({"prometheusRule": {"enabled": True}}, "PrometheusRule"),
        ({"cache": {"persistent": True}}, "PersistentVolumeClaim"),
        (GROUP, "LeaderWorkerSet"),
    ],
)
def test_a_kind_comes_when_it_is_asked_for(values: dict[str, Any], kind: str) -> None:
    assert kind not in render().kinds
    for version in KUBE_VERSIONS:
        found = render(values, kube_version=version).of(kind)
        assert found
        assert [error for one in found for error in schemas.errors(one, version)] == []


def test_the_chart_brings_no_definition_of_another_project() -> None:
    assert chart().crds == []

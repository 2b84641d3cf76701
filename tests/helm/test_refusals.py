"""What cannot work is refused before anything is installed, with a sentence that says what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helm_python import HelmError

from tests.helm.cluster import Cluster
from tests.helm.engine import NAMESPACE, at, chart, config, merged, render
from tests.helm.test_mutation import OWN, SCHEMA, Schema

KEDA = {"by": "keda", "prometheus": "http://prometheus:9090"}
IMAGE = {"model": {"source": "image", "image": {"reference": "models/leo:1", "path": "leo"}}}

# Values, and what of the sentence a reader needs: the values' names and a way out.
CONTRADICTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one node's claim, several pods": (
        {"replicas": 2, "cache": {"persistent": True}},
        ["cache.accessMode ReadWriteOnce", "take ReadWriteMany"],
    ),
    "one pod's claim, several pods": (
        {"replicas": 2, "cache": {"persistent": True, "accessMode": "ReadWriteOncePod"}},
        ["cache.accessMode ReadWriteOncePod", "take ReadWriteMany"],
    ),
    "one node's claim, pods that are scaled": (
        {"autoscaling": KEDA, "cache": {"persistent": True}},
        ["cache.accessMode ReadWriteOnce", "take ReadWriteMany"],
    ),
    "one node's claim, a rollout that needs two": (
        {"rollout": {"maxSurge": 1}, "cache": {"persistent": True}},
        ["cache.accessMode ReadWriteOnce", "rollout.maxSurge"],
    ),
    "one node's claim, several nodes": (
        {"nodes": 2, "gpu": {"count": 4}, "cache": {"persistent": True}},
        ["cache.accessMode ReadWriteOnce", "take ReadWriteMany"],
    ),
    "two claims for one cache": (
        {"cache": {"persistent": True, "existingClaim": "cache"}},
        ["cache.existingClaim", "cache.persistent", "one of them"],
    ),
    "a class of no claim": (at("cache.storageClass", "fast"), ["cache.storageClass", "set cache.persistent"]),
    "several nodes, scaled by pods": (
        {"nodes": 2, "gpu": {"count": 8}, "autoscaling": {"by": "hpa"}},
        ["nodes is 2", "autoscaling.by is hpa", "set replicas"],
    ),
    "several nodes, scaled by KEDA": (
        {"nodes": 2, "gpu": {"count": 8}, "autoscaling": KEDA},
        ["nodes is 2", "autoscaling.by is keda"],
    ),
    "several nodes without GPUs": ({"nodes": 2, "gpu": {"count": 0}}, ["nodes is 2", "gpu.count is 0"]),
    "more parallel than GPUs": (
        {"gpu": {"count": 2}, "options": {"tensor_parallel_size": 4}},
        ["options.tensor_parallel_size is 4", "has 2 GPUs", "raise gpu.count"],
    ),
    "GPUs that nobody uses": (
        {"gpu": {"count": 4}, "options": {"tensor_parallel_size": 2}},
        ["options.tensor_parallel_size is 2", "has 4 GPUs", "nobody would use"],
    ),
    "CUDA without a GPU": (
        {"gpu": {"count": 0}, "options": {"device": "cuda"}},
        ["options.device is cuda", "set gpu.count"],
    ),
    "a GPU for the CPU": (at("options.device", "cpu"), ["options.device is cpu", "set gpu.count to 0"]),
    "a GPU for an image without CUDA": (at("image.tag", "0.1.0-cpu"), ["image.tag 0.1.0-cpu", "gpu.count"]),
    "a budget that blocks drains": (
        {"replicas": 3, "podDisruptionBudget": {"maxUnavailable": 0}},
        ["podDisruptionBudget.maxUnavailable is 0", "drained"],
    ),
    "a budget of no percent": (
        {"replicas": 3, "podDisruptionBudget": {"maxUnavailable": "0%"}},
        ["podDisruptionBudget.maxUnavailable is 0%", "drained"],
    ),
    "a rollout that cannot move": (
        at("rollout.maxUnavailable", 0),
        ["rollout.maxSurge", "rollout.maxUnavailable", "no pod could ever be replaced"],
    ),
    "a rollout shorter than a start": (
        at("rollout.deadlineSeconds", 600),
        ["rollout.deadlineSeconds 600", "probes.startupSeconds 900"],
    ),
    "fewest above most": (
        {"autoscaling": {"by": "hpa", "minReplicas": 5, "maxReplicas": 2}},
        ["autoscaling.minReplicas 5", "autoscaling.maxReplicas 2"],
    ),
    "KEDA without Prometheus": (at("autoscaling.by", "keda"), ["set autoscaling.prometheus"]),
    "an ingress without a host": (at("ingress.enabled", True), ["ingress.hosts"]),
    "a route without a gateway": (at("httpRoute.enabled", True), ["httpRoute.parentRefs"]),
    "a pool without a picker": (at("inferencePool.enabled", True), ["set inferencePool.endpointPicker"]),
    "a model without a name": (at("model.hub.id", ""), ["model.hub.id is empty"]),
    "no claim": (at("model.source", "pvc"), ["set model.pvc.claim"]),
    "no folder": (at("model.source", "hostPath"), ["set model.hostPath.path"]),
    "no image": (at("model.source", "image"), ["set model.image.reference"]),
    "a model that nothing names": (
        {"model": {"source": "pvc", "pvc": {"claim": "models"}}},
        ["set options.served_model_name", "model.pvc.path"],
    ),
    "a mirror that cannot be reached": (
        at("model.hub.endpoint", "http://mirror:8080"),
        ["model.hub.endpoint is on port 8080", "set networkPolicy.hubPort to 8080"],
    ),
    "an answer that may take for ever": (at("options.request_timeout", None), ["options.request_timeout", "seconds"]),
    "a step too small for its sequences": (
        at("options.max_num_batched_tokens", 16),
        ["options.max_num_batched_tokens", "options.max_num_seqs"],
    ),
    "two paths for one route": (
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "path": "/a"}, "options": {"root_path": "/b"}},
        ["options.root_path is /b", "httpRoute.path is /a"],
    ),
    "keys that nobody asks for": (
        {"apiKeys": {"enabled": False, "existingSecret": "keys"}},
        ["apiKeys.existingSecret", "apiKeys.enabled is false"],
    ),
    "every series twice": (
        {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        ["podMonitor and serviceMonitor", "take one"],
    ),
    "a label by which pods are found": (
        {"podLabels": {"app.kubernetes.io/component": "worker"}},
        ["the label app.kubernetes.io/component", "podLabels"],
    ),
    "a label of everything that is the chart's": (
        {"commonLabels": {"app.kubernetes.io/instance": "x"}},
        ["the label app.kubernetes.io/instance", "commonLabels"],
    ),
    "an option as a variable": (
        {"extraEnv": [{"name": "LEOSERVE_MAX_NUM_SEQS", "value": "8"}]},
        ["extraEnv LEOSERVE_MAX_NUM_SEQS", "options.max_num_seqs"],
    ),
    "a secret in plain sight": (
        {"extraEnv": [{"name": "HF_TOKEN", "value": "hf_abc"}]},
        ["extraEnv HF_TOKEN", "valueFrom.secretKeyRef"],
    ),
    "two models on one host": (
        {
            "ingress": {"enabled": True, "hosts": ["leo.example.org"]},
            "models": {"a": {}, "b": {}},
        },
        ["leo-a", "leo-b", "leo.example.org", "give each model its own"],
    ),
    "an alert that there is not": (
        {"prometheusRule": {"enabled": True, "disabled": ["Nothing"]}},
        ["there is no alert Nothing"],
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_a_way_out(what: str) -> None:
    values, words = CONTRADICTIONS[what]
    with pytest.raises(HelmError) as refused:
        render(values)
    sentence = str(refused.value)
    assert [word for word in words if word not in sentence] == [], sentence
    assert not _internal(sentence)


def test_it_names_the_model_that_contradicts_itself() -> None:
    with pytest.raises(HelmError, match="leo-b: .*gpu.count is 0"):
        render({"models": {"a": {}, "b": {"nodes": 2, "gpu": {"count": 0}}}})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(HelmError) as refused:
        render({"ingress": {"enabled": True}, "autoscaling": {"by": "keda"}})
    assert {"ingress.hosts", "autoscaling.prometheus"} <= set(str(refused.value).replace(",", " ").split())


def test_an_image_volume_is_refused_before_the_cluster_that_has_them() -> None:
    render(IMAGE, kube_version="1.33")
    with pytest.raises(HelmError, match=r"Kubernetes v1\.32\.0.*need 1\.33 or newer; take pvc or hub"):
        render(IMAGE, kube_version="1.32")


def test_a_cluster_that_is_too_old_is_refused() -> None:
    refused = pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.29")
    with Cluster("1.28", namespaces={NAMESPACE: {}}) as old, config(old) as helm, refused:
        helm.install(chart(), "leo", dry_run="server")


@pytest.mark.parametrize("name", ["a" * 47, "7leo"])
def test_a_release_whose_name_makes_no_service_is_refused(name: str) -> None:
    with pytest.raises(HelmError, match="fullnameOverride"):
        render(name=name)


@pytest.mark.parametrize(
    ("cache", "modes"), [("cache.existingClaim", ["ReadWriteOnce"]), ("model.pvc.claim", ["ReadWriteOnce"])]
)
def test_a_claim_of_the_cluster_is_looked_at(cache: str, modes: list[str]) -> None:
    """With several pods, a claim of one node is refused by its name; a shared one is taken."""
    source = {"model": {"source": "pvc", "pvc": {"path": "leo"}}} if cache.startswith("model") else {}
    values = merged({"replicas": 2}, source, at(cache, "shared"))
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": NAMESPACE},
        "spec": {"accessModes": modes, "resources": {"requests": {"storage": "1Gi"}}},
    }
    with Cluster(namespaces={NAMESPACE: {}}) as cluster, config(cluster) as helm:
        cluster.add(claim)
        with pytest.raises(HelmError, match=f"{cache} shared has access mode ReadWriteOnce"):
            helm.install(chart(), "leo", values, dry_run="server")
    claim["spec"]["accessModes"] = ["ReadWriteMany"]  # type: ignore[index]
    with Cluster(namespaces={NAMESPACE: {}}) as cluster, config(cluster) as helm:
        cluster.add(claim)
        helm.install(chart(), "leo", values, dry_run="server")


def objects(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every map that is closed; `*` is an entry of a list."""
    if "properties" in schema:
        yield path
        for name, child in schema["properties"].items():
            yield from objects(child, (*path, name))
    if isinstance(schema.get("items"), dict):
        yield from objects(schema["items"], (*path, "*"))


def holding(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = [value] if key == "*" else {key: value}
    return value


OBJECTS = [path for path in objects(SCHEMA) if path[:1] != ("global",)]


def test_every_map_is_closed_or_meant_to_be_free() -> None:
    """A map without `properties` is free; all others say that nothing else may be in them."""

    def open_maps(schema: Schema, path: str) -> Iterator[str]:
        if "properties" in schema and schema.get("additionalProperties") is not False:
            yield path
        for name, child in schema.get("properties", {}).items():
            yield from open_maps(child, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                yield from open_maps(schema[key], f"{path}.*")

    assert list(open_maps(SCHEMA, "")) == []


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: ".".join(path) or "top")
def test_an_unknown_value_is_refused_by_its_name(path: tuple[str, ...]) -> None:
    told = "additional properties 'typo' not allowed"
    place = "/".join(("", *path)).replace("*", "0")
    assert f"at '{place}': {told}" in refusal(holding(path, {"typo": 1}))
    if not path or path[0] in OWN:
        assert f"at '/models/a{place}': {told}" in refusal({"models": {"a": holding(path, {"typo": 1})}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": "two"}, "replicas"),
        ({"gpu": {"count": -1}}, "gpu/count"),
        ({"options": {"max_num_seqs": 0}}, "options/max_num_seqs"),
        ({"options": {"api_key": "geheim"}}, "api_key"),
        ({"options": {"gpu_memory_utilization": 1.5}}, "options/gpu_memory_utilization"),
        ({"image": {"digest": "sha256:abc"}}, "image/digest"),
        ({"cache": {"size": "40 GB"}}, "cache/size"),
        ({"models": {"Large": {}}}, "propertyName 'Large'"),
        ({"models": {"a": {"podMonitor": {}}}}, "podMonitor"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema") as refused:
        render(values)
    assert named in str(refused.value)


def _internal(sentence: str) -> bool:
    """Whether it is a template that broke, not one that refuses."""
    return any(word in sentence for word in ("nil pointer", "error calling", "wrong type for", "can't evaluate"))


def paths(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, child in schema.get("properties", {}).items():
        yield (*path, name)
        if path[:1] != ("options",) and name != "options":
            yield from paths(child, (*path, name))


def refusal(values: dict[str, Any]) -> str:
    """The sentence with which values are refused, empty when they are taken."""
    try:
        render(values)
    except HelmError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("path", [path for path in paths(SCHEMA) if path != ("global",)], ids=".".join)
def test_a_value_taken_away_breaks_no_template(path: tuple[str, ...]) -> None:
    """null in a user's values takes the default away: that is refused by its name, for the release as for a model."""
    assert f"missing property '{path[-1]}'" in refusal(holding(path, None))
    if path[0] in OWN:
        assert f"at '/models/a/{'/'.join(path)}': " in refusal({"models": {"a": holding(path, None)}})

"""The cluster that the other tests install into: it refuses what Kubernetes refuses, and takes what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.cluster import Cluster, Refused
from tests.helm.cluster.admission import ENFORCE
from tests.helm.engine import merged

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "here"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]},
        },
    },
}
SECRET: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "key", "namespace": "here"},
    "data": {"key": "Z2VoZWlt"},
}
QUIET = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "web",
            "image": "web:1",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(namespaces={"here": {}, "strict": {ENFORCE: "restricted"}}) as cluster:
        yield cluster


def deployment(template: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return merged(DEPLOYMENT, {"spec": {"template": {"spec": template or {}}}}, changes)


def container(**fields: Any) -> dict[str, Any]:
    return deployment({"containers": [{"name": "web", "image": "web:1"} | fields]})


def kind(name: str, api_version: str = "v1", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": name, "metadata": {"name": "web", "namespace": "here"}} | fields


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": (deployment(spec={"replica": 2}), "'replica' was unexpected"),
    "a wrong type": (deployment(spec={"replicas": "2"}), "'2' is not of type"),
    "a field of a newer version": (container(resizePolicies=[]), "'resizePolicies' was unexpected"),
    "an unknown namespace": (merged(DEPLOYMENT, {"metadata": {"namespace": "there"}}), 'namespaces "there" not found'),
    "a label that is none": (merged(DEPLOYMENT, {"metadata": {"labels": {"a": "b c"}}}), "is no label"),
    "a quantity that is none": (container(resources={"limits": {"memory": "24Gb"}}), "is no quantity"),
    "a name with capitals": (merged(DEPLOYMENT, {"metadata": {"name": "Web"}}), "is no name"),
    "a selector of nothing": (deployment(spec={"selector": {"matchLabels": {"app": "x"}}}), "does not match template"),
    "a mount without its volume": (container(volumeMounts=[{"name": "x", "mountPath": "/x"}]), "Not found: 'x'"),
    "a path mounted twice": (
        deployment(
            {
                "volumes": [{"name": name, "emptyDir": {}} for name in "ab"],
                "containers": [
                    {
                        "name": "web",
                        "image": "web:1",
                        "volumeMounts": [{"name": name, "mountPath": "/x"} for name in "ab"],
                    }
                ],
            }
        ),
        "Duplicate value: '/x'",
    ),
    "a GPU asked for twice": (
        container(resources={"requests": {"nvidia.com/gpu": 2}, "limits": {"nvidia.com/gpu": 1}}),
        "must be equal to nvidia.com/gpu limit",
    ),
    "a long port name": (container(ports=[{"name": "a" * 16, "containerPort": 1}]), "port name"),
    "a value and where it comes from": (
        container(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "may not be specified when `value` is not empty",
    ),
    "a probe of no kind": (container(readinessProbe={"periodSeconds": 5}), "must specify a handler type"),
    "a rollout that cannot move": (
        deployment(
            spec={"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}
        ),
        "may not be 0 when `maxSurge` is 0",
    ),
    "a budget with both bounds": (
        kind("PodDisruptionBudget", "policy/v1", spec={"minAvailable": 1, "maxUnavailable": 1}),
        "cannot be both set",
    ),
    "an autoscaler the wrong way round": (
        kind(
            "HorizontalPodAutoscaler",
            "autoscaling/v2",
            spec={"minReplicas": 3, "maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "web"}},
        ),
        "must be greater than or equal to `minReplicas`",
    ),
    "a service without ports": (kind("Service", spec={"selector": {"app": "web"}}), "spec.ports: Required"),
    "an unknown field of a custom resource": (
        kind("PodMonitor", "monitoring.coreos.com/v1", spec={"selector": {}, "podMetricsEndpoint": []}),
        "'podMetricsEndpoint' was unexpected",
    ),
    "a custom resource without what it needs": (
        kind("InferencePool", "inference.networking.k8s.io/v1", spec={"selector": {"matchLabels": {}}}),
        "is a required property",
    ),
    "a wrong field in a pod of a custom resource": (
        kind(
            "LeaderWorkerSet",
            "leaderworkerset.x-k8s.io/v1",
            spec={"leaderWorkerTemplate": {"workerTemplate": {"spec": {"containers": [{"name": "a", "imagen": ""}]}}}},
        ),
        "'imagen' was unexpected",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_refuses(what: str, cluster: Cluster) -> None:
    wrong, sentence = WRONG[what]
    with pytest.raises(Refused, match=".*") as refused:
        cluster.add(wrong)
    assert sentence in str(refused.value)
    assert cluster.all() == []


def test_it_refuses_by_the_schema_of_its_own_version() -> None:
    """Image volumes came with 1.31."""
    volumes = deployment({"volumes": [{"name": "model", "image": {"reference": "models/leo:1"}}]})
    with Cluster("1.29", namespaces={"here": {}}) as old, Cluster("1.34", namespaces={"here": {}}) as new:
        with pytest.raises(Refused, match="'image' was unexpected"):
            old.add(volumes)
        new.add(volumes)


def test_a_kind_whose_operator_is_missing_is_unknown() -> None:
    with Cluster(groups=(), namespaces={"here": {}}) as bare:
        assert "ScaledObject" not in {one.kind for one in bare.resources}


def test_a_restricted_namespace_takes_no_pod_that_may_do_more(cluster: Cluster) -> None:
    place = {"metadata": {"namespace": "strict"}}
    with pytest.raises(Refused, match="violates PodSecurity.*runAsNonRoot is not true"):
        cluster.add(merged(DEPLOYMENT, place))
    cluster.add(merged(deployment(QUIET), place))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"selector": {"matchLabels": {"app": "web", "tier": "a"}}},
            "spec.selector: Invalid value: field is immutable",
        ),
    ],
)
def test_what_is_immutable_stays(change: dict[str, Any], sentence: str, cluster: Cluster) -> None:
    template = {"metadata": {"labels": {"app": "web", "tier": "a"}}}
    first = deployment(spec={"template": template})
    cluster.store.apply(cluster.resource("Deployment"), "here", first, "helm")
    with pytest.raises(Refused, match=sentence):
        cluster.store.apply(cluster.resource("Deployment"), "here", merged(first, {"spec": change}), "helm")


def test_an_immutable_secret_keeps_its_data(cluster: Cluster) -> None:
    secrets = cluster.resource("Secret")
    cluster.store.apply(secrets, "here", SECRET | {"immutable": True}, "helm")
    with pytest.raises(Refused, match="field is immutable when"):
        cluster.store.apply(secrets, "here", SECRET | {"immutable": True, "data": {"key": "YQ=="}}, "helm")


def test_a_field_no_longer_applied_goes_and_anothers_stays(cluster: Cluster) -> None:
    deployments = cluster.resource("Deployment")
    cluster.store.apply(deployments, "here", merged(DEPLOYMENT, {"metadata": {"labels": {"a": "b"}}}), "helm")
    scaled = {**{key: DEPLOYMENT[key] for key in ("apiVersion", "kind", "metadata")}, "spec": {"minReadySeconds": 7}}
    cluster.store.apply(deployments, "here", merged(DEPLOYMENT, scaled), "somebody")
    after = cluster.store.apply(deployments, "here", DEPLOYMENT, "helm")
    assert "labels" not in after["metadata"]
    assert after["spec"]["minReadySeconds"] == 7


def test_a_field_of_somebody_else_is_a_conflict(cluster: Cluster) -> None:
    deployments = cluster.resource("Deployment")
    cluster.store.apply(deployments, "here", DEPLOYMENT, "somebody")
    with pytest.raises(Refused, match='conflict with "somebody": .spec.replicas'):
        cluster.store.apply(deployments, "here", deployment(spec={"replicas": 3}), "helm")


def test_a_deployment_waits_for_what_its_pods_refer_to(cluster: Cluster) -> None:
    volumes = [{"name": "key", "secret": {"secretName": "key", "items": [{"key": "key", "path": "key"}]}}]
    stuck = cluster.add(deployment({"volumes": volumes}))
    assert stuck["status"]["conditions"][1]["message"] == "Secret key"
    cluster.add(SECRET)
    moved = cluster.store.apply(cluster.resource("Deployment"), "here", deployment({"volumes": volumes}), "helm")
    assert moved["status"]["availableReplicas"] == 1
    volumes[0]["secret"]["items"][0]["key"] = "other"  # type: ignore[index]
    wrong = cluster.store.apply(
        cluster.resource("Deployment"), "here", deployment({"volumes": volumes}), "helm", force=True
    )
    assert wrong["status"]["conditions"][1]["message"] == "key other of Secret key"

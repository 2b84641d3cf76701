"""A release's life in a cluster: installed, upgraded, failed, rolled back, tested and taken away, by Helm itself."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import helm_python
import pytest
from helm_python import HelmError

from tests.conftest import PATIENCE
from tests.helm.cluster import Cluster
from tests.helm.cluster.admission import ENFORCE
from tests.helm.engine import NAMESPACE, NEWEST, RELEASE, chart, config, example, merged
from tests.helm.test_examples import DEFAULTS, NAMES, NEEDS

SECONDS = int(PATIENCE)
# What the presets refer to and an administrator has made before.
BROUGHT: list[dict[str, Any]] = [
    {"kind": "Secret", "metadata": {"name": "leo-keys"}, "stringData": {"keys": "sk-one\n"}},
    {"kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"token": "hf_abc"}},
    {"kind": "Secret", "metadata": {"name": "registry"}, "stringData": {"a": "b"}},
    {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}},
    },
]
# What stays when a release goes.
KEPT = [("PersistentVolumeClaim", "leo-cache"), ("Secret", "leo-keys")]


@dataclass
class Life:
    """A cluster and a Helm that is connected to it, which keeps its releases where the CLI keeps them."""

    cluster: Cluster
    helm: helm_python.Config

    def install(self, values: dict[str, Any]) -> None:
        self.helm.install(chart(), RELEASE, values, wait="watcher", timeout=SECONDS)

    def upgrade(self, values: dict[str, Any]) -> None:
        self.helm.upgrade(chart(), RELEASE, values, wait="watcher", timeout=SECONDS)

    def get(self, kind: str, name: str = RELEASE) -> dict[str, Any]:
        return self.cluster.get(kind, name, NAMESPACE)

    @property
    def image(self) -> str:
        return str(self.get("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"])

    @property
    def key(self) -> str:
        return base64.b64decode(self.get("Secret", "leo-keys")["data"]["keys"]).decode()

    @property
    def checksum(self) -> str:
        return str(self.get("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/options"])

    @property
    def left(self) -> list[tuple[str, str]]:
        return [(one["kind"], one["metadata"]["name"]) for one in self.cluster.all()]

    @property
    def states(self) -> list[str]:
        return [one["status"] for one in self.helm.history(RELEASE)]


@pytest.fixture
def life() -> Iterator[Life]:
    """In a namespace that enforces the restricted profile."""
    namespaces = {NAMESPACE: {ENFORCE: "restricted"}}
    with Cluster(namespaces=namespaces) as cluster, config(cluster, storage_driver="secret") as helm:
        yield Life(cluster, helm)


def test_a_release_lives_and_leaves_what_is_to_be_kept(life: Life) -> None:
    values = {"cache": {"persistent": True}}
    life.install(values)
    first = (life.key, life.checksum, life.image)
    assert life.key.startswith("sk-")
    assert life.get("Deployment")["status"]["availableReplicas"] == 1

    # Another option: other pods, the same key.
    life.upgrade(merged(values, {"options": {"max_num_seqs": 8}}))
    assert (life.key, life.image) == (first[0], first[2])
    assert life.checksum != first[1]

    # An image that nobody can pull: the upgrade fails and says why.
    wrong = first[2].rpartition(":")[0] + ":wrong"
    life.cluster.store.unpullable.add(wrong)
    with pytest.raises(HelmError, match="Deployment/inference/leo not ready"):
        life.upgrade(merged(values, {"image": {"tag": "wrong"}}))
    assert life.image == wrong
    assert life.states == ["superseded", "deployed", "failed"]

    # Back to what worked.
    life.helm.rollback(RELEASE, wait="watcher", timeout=SECONDS)
    assert (life.key, life.image) == (first[0], first[2])
    assert life.checksum != first[1]
    assert life.states == ["superseded", "superseded", "failed", "deployed"]

    # And further back.
    life.helm.rollback(RELEASE, version=1, wait="watcher", timeout=SECONDS)
    assert (life.key, life.checksum, life.image) == first

    life.helm.uninstall(RELEASE, wait="watcher", timeout=SECONDS)
    assert life.left == KEPT


@pytest.mark.parametrize("how", ["changed", "made anew"])
def test_a_key_that_was_rotated_stays_so_whatever_comes_back(life: Life, how: str) -> None:
    life.install({})
    first = life.key
    secrets = life.cluster.resource("Secret")
    if how == "changed":  # by hand
        rotated = life.get("Secret", "leo-keys") | {"data": {"keys": base64.b64encode(b"sk-new\n").decode()}}
        life.cluster.store.replace(secrets, NAMESPACE, rotated)
    else:  # by the upgrade
        life.cluster.store.delete(secrets, NAMESPACE, "leo-keys")
    life.upgrade({"options": {"max_num_seqs": 8}})
    second = life.key
    assert first != second
    life.upgrade({"options": {"max_num_seqs": 16}})
    for version in (2, 1):
        life.helm.rollback(RELEASE, version=version, wait="watcher", timeout=SECONDS)
        assert life.key == second
    assert life.get("Deployment")["status"]["availableReplicas"] == 1

    life.helm.uninstall(RELEASE, wait="watcher", timeout=SECONDS, keep_history=True)
    life.helm.rollback(RELEASE, version=2, wait="watcher", timeout=SECONDS)
    assert life.key == second
    assert life.get("Deployment")["status"]["availableReplicas"] == 1


def test_a_key_is_made_once_and_another_entry_has_the_same(life: Life) -> None:
    life.install({"apiKeys": {"enabled": False}})
    assert ("Secret", "leo-keys") not in life.left
    life.upgrade({"apiKeys": {"enabled": True}})
    key = life.key
    life.upgrade({"apiKeys": {"secretKey": "other"}})
    entries = life.get("Secret", "leo-keys")["data"]
    assert {name: base64.b64decode(value).decode() for name, value in entries.items()} == {"keys": key, "other": key}


def test_its_test_runs_and_leaves_its_log_alone(life: Life) -> None:
    """Hooks are no part of a release. Helm 3 would not find the log of a pod that goes with its success."""
    life.install({})
    told = life.helm.test(RELEASE, timeout=SECONDS, logs=True)
    assert "log of leo-test" in told["logs"]
    life.helm.uninstall(RELEASE, wait="watcher", timeout=SECONDS)
    assert life.left == [("Pod", "leo-test"), ("Secret", "leo-keys")]


def test_its_test_fails_with_the_server(life: Life) -> None:
    """A pod that cannot start fails the test: here the Secret with the keys is gone."""
    life.install({})
    life.cluster.store.delete(life.cluster.resource("Secret"), NAMESPACE, "leo-keys")
    with pytest.raises(HelmError, match="leo-test"):
        life.helm.test(RELEASE, timeout=SECONDS)


def test_replicas_that_an_autoscaler_set_outlive_an_upgrade(life: Life) -> None:
    values: dict[str, Any] = {"autoscaling": {"by": "hpa"}}
    life.install(values)
    deployment = life.get("Deployment")
    assert "replicas" not in deployment["spec"]
    scaled = {key: deployment[key] for key in ("apiVersion", "kind")} | {
        "metadata": {"name": RELEASE, "namespace": NAMESPACE},
        "spec": {**deployment["spec"], "replicas": 3},
    }
    life.cluster.store.replace(life.cluster.resource("Deployment"), NAMESPACE, scaled)
    life.upgrade(merged(values, {"options": {"max_num_seqs": 8}}))
    assert life.get("Deployment")["spec"]["replicas"] == 3


def test_one_deployment_becomes_several_models_with_the_same_key(life: Life) -> None:
    life.install({})
    key = life.key
    life.upgrade({"models": {"a": {}, "b": {}}})
    assert life.key == key
    names = {name for kind, name in life.left if kind == "Deployment"}
    assert names == {"leo-a", "leo-b"}


def test_a_namespace_that_is_not_there_is_said(life: Life) -> None:
    with config(life.cluster, "elsewhere") as helm, pytest.raises(HelmError, match='namespaces "elsewhere" not found'):
        helm.install(chart(), RELEASE)


def test_a_cluster_without_the_operator_is_said() -> None:
    refused = pytest.raises(HelmError, match='no matches for kind "ScaledObject" in version "keda.sh/v1alpha1"')
    with Cluster(groups=(), namespaces={NAMESPACE: {}}) as bare, config(bare) as helm, refused:
        helm.install(chart(), RELEASE, {"autoscaling": {"by": "keda", "prometheus": "http://prometheus:9090"}})


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_installs(name: str) -> None:
    """In a restricted namespace of the oldest version that it is for and of the newest; and goes without a rest."""
    values = {} if name == DEFAULTS else example(name)
    for version in (NEEDS.get(name, "1.29"), NEWEST):
        namespaces = {NAMESPACE: {ENFORCE: "restricted"}}
        with Cluster(version, namespaces=namespaces) as cluster, config(cluster) as helm:
            own = values.get("apiKeys", {}).get("existingSecret")
            brought = [one for one in BROUGHT if one["metadata"]["name"] != "leo-keys" or own]
            for one in brought:
                place = {"apiVersion": "v1", "metadata": {"namespace": NAMESPACE}}
                cluster.add(merged(one, place))
            helm.install(chart(), RELEASE, values, wait="hookOnly")
            assert [one["status"]["conditions"] for one in cluster.all("Deployment") if not _available(one)] == []
            helm.uninstall(RELEASE, wait="hookOnly")
            kept = {one["metadata"]["name"] for one in brought} | {name for _, name in KEPT}
            assert {one["metadata"]["name"] for one in cluster.all()} <= kept


def _available(deployment: dict[str, Any]) -> bool:
    return bool(deployment["status"]["availableReplicas"] == deployment["spec"].get("replicas", 1))

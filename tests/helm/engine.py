"""The chart through Helm's own engine: values in, the cluster's objects out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import helm_python
import yaml
from helm_python import _native

from tests.conftest import ROOT

if TYPE_CHECKING:
    from tests.helm.cluster import Cluster

CHART = ROOT / "helm" / "leoserve"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
RELEASE = "leo"
NAMESPACE = "inference"
KUBE_VERSIONS = ("1.29", "1.32", "1.34")
NEWEST = KUBE_VERSIONS[-1]
# What a cluster with every operator that the chart knows serves beside Kubernetes itself.
API_VERSIONS = (
    "gateway.networking.k8s.io/v1",
    "inference.networking.k8s.io/v1",
    "keda.sh/v1alpha1",
    "leaderworkerset.x-k8s.io/v1",
    "monitoring.coreos.com/v1",
)

Object = dict[str, Any]
Values = Mapping[str, Any]


class StrictLoader(yaml.CSafeLoader):
    """YAML as an API server with strict field validation reads it: a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Pod:
    """What becomes a pod: the object that makes it, its metadata and its spec."""

    owner: Object
    metadata: Object
    spec: Object

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def containers(self) -> list[Object]:
        """All of them, those that start before the others included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def server(self) -> Object:
        (container,) = [one for one in self.spec["containers"] if one["name"] == "leoserve"]
        return dict(container)


def pods_of(owner: Object) -> Iterator[Pod]:
    """The pods that `owner` is or makes."""
    spec = owner.get("spec", {})
    if owner["kind"] == "Pod":
        yield Pod(owner, owner["metadata"], spec)
    templates = [spec.get("template")]
    group = spec.get("leaderWorkerTemplate", {})
    templates += [group.get("leaderTemplate"), group.get("workerTemplate")]
    for template in templates:
        if template and "spec" in template and "containers" in template["spec"]:
            yield Pod(owner, template.get("metadata", {}), template["spec"])


@dataclass(frozen=True)
class Rendering:
    """The objects that the chart makes of some values, in the order of its files, and what it tells the user."""

    objects: tuple[Object, ...]
    notes: str

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        """The only object of its kind, or the one with that name."""
        found = [one for one in self.of(kind) if name in (None, one["metadata"]["name"])]
        assert len(found) == 1, f"{kind} {name or ''}: {[one['metadata']['name'] for one in self.of(kind)]}"
        return found[0]

    @property
    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.objects}

    @property
    def pods(self) -> list[Pod]:
        return [pod for one in self.objects for pod in pods_of(one)]

    @property
    def serving(self) -> list[Pod]:
        """The pods without the test hook's."""
        return [pod for pod in self.pods if not is_hook(pod.owner)]


def is_hook(one: Object) -> bool:
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


def parse(text: str) -> list[Object]:
    return [one for one in yaml.load_all(text, Loader=StrictLoader) if one]


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(
    values: Values | None = None,
    *,
    name: str = RELEASE,
    namespace: str = NAMESPACE,
    kube_version: str = NEWEST,
    api_versions: tuple[str, ...] = API_VERSIONS,
    of: helm_python.Chart | None = None,
) -> Rendering:
    """What `helm template --kube-version --api-versions` makes of `values`. A refusal raises `HelmError`."""
    # The library's own render() lacks the last two options, which the function below it takes.
    options = {
        "name": name,
        "namespace": namespace,
        "kube_version": f"v{kube_version}.0",
        "api_versions": list(api_versions),
    }
    rendered = _native.call_string(
        "helm_render", (of or chart())._raw(), json.dumps(dict(values or {})), json.dumps(options)
    )
    texts: dict[str, str] = json.loads(rendered)
    notes = "".join(text for path, text in texts.items() if path.endswith("NOTES.txt"))
    manifests = [text for path, text in sorted(texts.items()) if path.endswith((".yaml", ".yml"))]
    return Rendering(tuple(one for text in manifests for one in parse(text)), notes)


def config(cluster: Cluster, namespace: str = NAMESPACE, storage_driver: str = "memory") -> helm_python.Config:
    """Helm, connected to the cluster without its usual patience; it keeps its releases in `memory` or in a `secret`."""
    return helm_python.Config(
        kubeconfig_content=cluster.kubeconfig(namespace),
        namespace=namespace,
        storage_driver=storage_driver,
        qps=1000.0,
        burst_limit=1000,
    )


def example(name: str) -> dict[str, Any]:
    """The values of `examples/NAME.yaml`."""
    values: dict[str, Any] = yaml.load((CHART / "examples" / f"{name}.yaml").read_text(), Loader=StrictLoader) or {}
    return values


def merged(*layers: Values) -> dict[str, Any]:
    """Later layers win, maps are merged: what several `--values` do."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def at(path: str, value: Any) -> dict[str, Any]:
    """`at("a.b", 1)` is `{"a": {"b": 1}}`, as `--set a.b=1`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector takes what has `labels`. An empty one takes everything."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for term in selector.get("matchExpressions", []):
        value, values = labels.get(term["key"]), term.get("values", [])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[term["operator"]]:
            return False
    return True

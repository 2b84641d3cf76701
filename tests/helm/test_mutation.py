"""No value is ignored: each one of the schema, changed to another valid one, changes what is rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.helm import schemas
from tests.helm.cluster.admission import refusals
from tests.helm.engine import CHART, NEWEST, Rendering, at, chart, merged, render

Schema = dict[str, Any]

SCHEMA: Schema = json.loads((CHART / "values.schema.json").read_text())
NO_LEAVES = {
    "models": "its every value is tested below",
    "global": "what Helm gives every chart of a parent chart, asked for or not",
    "options.tensor_parallel_size": "follows from gpu.count and nodes; any other value is refused (test_refusals.py)",
}

# In which a value matters, where that is not the defaults: the longest prefix of its path counts.
PICKER = {"enabled": True, "endpointPicker": "picker"}
BASES: dict[str, dict[str, Any]] = {
    "model.hub.tokenKey": at("model.hub.tokenSecret", "token"),
    "model.pvc": {"model": {"source": "pvc", "pvc": {"claim": "models", "path": "leo"}}},
    "model.hostPath": {"model": {"source": "hostPath", "hostPath": {"path": "/srv/leo"}}},
    "model.image": {"model": {"source": "image", "image": {"reference": "models/leo:1", "path": "leo"}}},
    "model.source": {
        "model": {
            "pvc": {"claim": "models", "path": "leo"},
            "hostPath": {"path": "/srv/leo"},
            "image": {"reference": "models/leo:1", "path": "leo"},
        }
    },
    "options.max_num_batched_tokens": at("options.max_num_batched_tokens", 4096),
    "cache.storageClass": at("cache.persistent", True),
    "cache.accessMode": at("cache.persistent", True),
    "cache.retain": at("cache.persistent", True),
    "ingress": {"ingress": {"enabled": True, "hosts": ["leo.example.org"]}},
    "ingress.enabled": at("ingress.hosts", ["leo.example.org"]),
    "httpRoute": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}},
    "httpRoute.enabled": at("httpRoute.parentRefs", [{"name": "gateway"}]),
    "inferencePool": {"inferencePool": PICKER},
    "inferencePool.enabled": at("inferencePool.endpointPicker", "picker"),
    "autoscaling": {"autoscaling": {"by": "keda", "prometheus": "http://prometheus:9090"}},
    "autoscaling.by": at("autoscaling.prometheus", "http://prometheus:9090"),
    "podDisruptionBudget": at("replicas", 4),
    "podMonitor": at("podMonitor.enabled", True),
    "podMonitor.enabled": {},
    "serviceMonitor": at("serviceMonitor.enabled", True),
    "serviceMonitor.enabled": {},
    "prometheusRule": at("prometheusRule.enabled", True),
    "prometheusRule.enabled": {},
    "dashboard": at("dashboard.enabled", True),
    "dashboard.enabled": {},
}

TOLERATIONS = [[], [{"key": "a", "operator": "Equal", "value": "b"}]]
# Another value of a type that says little about what is valid.
OTHERS: dict[str, list[Any]] = {
    "prometheusRule.disabled": [["LeoserveDown"]],
    "prometheusRule.additionalGroups": [[{"name": "own", "rules": [{"record": "a", "expr": "1"}]}]],
    "extraVolumes": [[{"name": "x", "emptyDir": {}}]],
    "extraVolumeMounts": [[{"name": "tmp", "mountPath": "/x"}]],
    "extraEnv": [[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]],
    "tolerations": TOLERATIONS,
    "test.tolerations": TOLERATIONS,
    "httpRoute.parentRefs": [[{"name": "other", "namespace": "gateways"}]],
    "networkPolicy.extraEgress": [[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]],
    "networkPolicy.clients": [[{"namespaceSelector": {"matchLabels": {"a": "b"}}}]],
    "networkPolicy.scrapers": [[{"podSelector": {"matchLabels": {"a": "b"}}}]],
    "networkPolicy.hub": [[{"ipBlock": {"cidr": "10.0.0.0/8"}}]],
    "topologySpread": [
        [],
        [{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    ],
    "affinity": [{"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}],
    "resources.requests": [{"cpu": "7"}],
    "resources.limits": [{"memory": "25Gi"}],
    "podSecurityContext": [{"runAsUser": 10002}],
    "securityContext": [{"runAsUser": 10002}],
    "options.root_path": ["/leo"],
    "options.device": ["auto"],
}
TEXTS = ["other", "/srv/other", "a/b", "https://example.org", "other.example.org", "2Gi", "30s", "50%"]
TEXTS += [f"sha256:{'0' * 64}"]


def leaves(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every value that has none below it, by its dotted path."""
    for name, child in schema["properties"].items():
        if "properties" in child:
            yield from leaves(child, f"{path}{name}.")
        elif path + name not in NO_LEAVES:
            yield path + name, child


LEAVES = dict(leaves(SCHEMA))


def base_prefix(path: str) -> str:
    return max((prefix for prefix in BASES if f"{path}.".startswith(f"{prefix}.")), key=len, default="")


def base(path: str) -> dict[str, Any]:
    return BASES.get(base_prefix(path), {})


def found_at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def others(path: str) -> list[Any]:
    """Valid values other than the one in its base: all of an enumeration, one of anything else."""
    schema = LEAVES[path]
    now = found_at(merged(chart().values, base(path)), path)
    now = schema.get("default") if now is None else now
    if path in OTHERS:
        return OTHERS[path]
    if "enum" in schema:
        return [value for value in schema["enum"] if value != now]
    check = jsonschema.Draft7Validator(schema)
    valid = [value for value in _candidates(schema, now) if value != now and check.is_valid(value)]
    assert valid, f"no other value is known for {path}"
    return valid[:1]


def _candidates(schema: Schema, now: Any) -> list[Any]:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    found: list[Any] = []
    if "boolean" in types:
        found.append(not now)
    if {"integer", "number"} & set(types):
        first = now if isinstance(now, int | float) else schema.get("minimum", 1)
        found += [first + 1, first - 1, first / 2]
    if "string" in types:
        found += TEXTS
    if "array" in types:
        found += [[text] for text in TEXTS]
    if "object" in types:
        found.append({"example.org/x": "y"})
    return found


def shown(rendering: Rendering, name: str = "") -> str:
    """What is compared: the objects, but not the key, another one each time; with a name only what is called so."""
    objects = []
    for one in rendering.objects:
        if one["kind"] == "Secret":
            one = {**one, "data": dict.fromkeys(one["data"], "…")}
        if not name or one["metadata"]["name"].startswith(name):
            objects.append(one)
    return json.dumps(objects, sort_keys=True)


def refused(rendering: Rendering) -> list[str]:
    """What the newest Kubernetes would have against it."""
    return [
        f"{one['kind']}: {why}"
        for one in rendering.objects
        for why in [*schemas.errors(one, NEWEST), *refusals(one, None, None)]
    ]


@cache
def before(text: str) -> str:
    return shown(render(json.loads(text)))


@pytest.mark.parametrize("path", LEAVES)
def test_a_changed_value_changes_the_rendering(path: str) -> None:
    """And what it changes it into is still what a cluster takes."""
    values = base(path)
    for other in others(path):
        rendering = render(merged(values, at(path, other)))
        assert shown(rendering) != before(json.dumps(values)), f"{path}={other!r}"
        assert refused(rendering) == [], f"{path}={other!r}"


OWN = SCHEMA["properties"]["models"]["additionalProperties"]["properties"]


def model(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What stands under `models` for a base or a mutant of it; with hosts of its own, which no two may share."""
    host = {"ingress": {"hosts": [f"leo-{name}.example.org"]}, "httpRoute": {"hostnames": [f"leo-{name}.example.org"]}}
    return merged({key: value for key, value in values.items() if key in OWN}, host)


@pytest.mark.parametrize("prefix", ["", *BASES])
def test_a_model_can_override_each_of_its_values(prefix: str) -> None:
    """All that have the same base, in one release of many models: each is something else than the model without."""
    paths = [path for path in LEAVES if path.partition(".")[0] in OWN and base_prefix(path) == prefix]
    plain = BASES.get(prefix, {})
    mutants = {}
    for number, path in enumerate(paths):
        for index, other in enumerate(others(path)):
            name = f"m{number}-{index}"
            mutants[name] = merged(model(name, plain), at(path, other))
    rendering = render({"models": {"plain": model("plain", plain)} | mutants})

    def of(name: str) -> str:
        return shown(rendering, f"leo-{name}").replace(f"leo-{name}", "leo-x")

    assert [mutant for name, mutant in mutants.items() if of(name) == of("plain")] == []


TEXTS_OF = [
    (path, text)
    for path, schema in LEAVES.items()
    for text in ("123", "a: b #c")
    if schema.get("type") == "string" and "enum" not in schema and jsonschema.Draft7Validator(schema).is_valid(text)
]


@pytest.mark.parametrize(("path", "text"), TEXTS_OF)
def test_text_that_looks_like_something_else_stays_text(path: str, text: str) -> None:
    """A Secret may be called 123. What is no name to Kubernetes may be refused there, but for no other reason."""
    rendering = render(merged(base(path), at(path, text)))
    assert [why for why in refused(rendering) if "is not of type" in why] == []
    section, _, option = path.partition(".")
    if section == "options":
        assert yaml.safe_load(rendering.one("ConfigMap", "leo-options")["data"]["options.yaml"])[option] == text

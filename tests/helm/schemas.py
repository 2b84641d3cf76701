"""Whether an object is one that a cluster takes, field by field: Kubernetes' schemas and those of custom resources.

Unknown fields are errors, as with `kubectl --validate=strict`. Kubernetes' schemas come with the package
kubernetes-validate; those in crds/ are CustomResourceDefinitions of their projects (Prometheus Operator, KEDA, Gateway
API and its Inference Extension, LeaderWorkerSet; Apache License 2.0) without the descriptions (see `prune`).
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml

CRDS = Path(__file__).with_name("crds")
Schema = dict[str, Any]

_DEFINITIONS = "/api/_definitions.json#"
_POD_TEMPLATE = {"$ref": "#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}


@cache
def definitions(version: str) -> Schema:
    """Every type of Kubernetes `version` ("1.34") by its name."""
    found: Schema = json.loads(_packaged(version, "_definitions").replace(_DEFINITIONS, "#"))["$defs"]
    return found


def _packaged(version: str, name: str) -> str:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return (folder / f"{name}.json").read_text()


@cache
def custom_resources() -> dict[tuple[str, str], Schema]:
    """The definitions in crds/, by API version and kind."""
    found = {}
    for path in sorted(CRDS.glob("*.json")):
        crd = json.loads(path.read_text())
        for version in crd["spec"]["versions"]:
            found[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = crd
    return found


@cache
def validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    """Raises KeyError for a kind that nobody has heard of."""
    crd = custom_resources().get((api_version, kind))
    if crd is not None:
        (served,) = [one for one in crd["spec"]["versions"] if api_version.endswith(f"/{one['name']}")]
        schema = strict(served["schema"]["openAPIV3Schema"])
        schema["properties"] |= {"metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}}
    else:
        # "rbac.authorization.k8s.io/v1" is "rbac-v1" there, "v1" is "v1".
        group, _, number = api_version.rpartition("/")
        name = "-".join(part for part in (kind.lower(), group.partition(".")[0], number) if part)
        try:
            schema = json.loads(_packaged(version, name).replace(_DEFINITIONS, "#"))
        except FileNotFoundError:
            raise KeyError(f"{api_version} {kind}") from None
    return jsonschema.Draft202012Validator({**schema, "$defs": definitions(version)})


def errors(one: dict[str, Any], version: str) -> list[str]:
    """What Kubernetes `version` would have against the object `one`; empty when it takes it."""
    try:
        checks = validator(version, one["apiVersion"], one["kind"])
    except KeyError:
        return [f'no matches for kind "{one["kind"]}" in version "{one["apiVersion"]}"']
    found = [f"{error.json_path}: {error.message[:300]}" for error in checks.iter_errors(one)]
    return found + list(_bad_syntax(one, checks.schema))


_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"[+-]?(\d+|\d*\.\d+|\d+\.)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


def _bad_syntax(one: dict[str, Any], schema: Schema) -> Any:
    """What is text to a schema and refused by the API server all the same: labels, names, quantities."""
    for path, key, value in _walk(one, "$"):
        if key in ("labels", "matchLabels") and isinstance(value, dict):
            for name, text in value.items():
                if not (_KEY.fullmatch(name) and isinstance(text, str) and _LABEL.fullmatch(text)):
                    yield f"{path}: {name}={text!r} is no label"
        if key == "annotations" and isinstance(value, dict):
            yield from (f"{path}: {name!r} is no key" for name in value if not _KEY.fullmatch(name))
        if key in ("limits", "requests") and isinstance(value, dict):
            for name, amount in value.items():
                if not _QUANTITY.fullmatch(str(amount)):
                    yield f"{path}.{name}: {amount!r} is no quantity"
        if (
            key == "metadata"
            and isinstance(value, dict)
            and "name" in value
            and not _NAME.fullmatch(str(value["name"]))
        ):
            yield f"{path}.name: {value['name']!r} is no name"


def _walk(value: Any, path: str) -> Any:
    """(path, key, value) of everything below `value`; what is free-form data stays closed."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"{path}.{key}", key, child
            if not (path == "$" and key in ("data", "stringData")):
                yield from _walk(child, f"{path}.{key}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _walk(child, f"{path}[{index}]")


def strict(schema: Schema) -> Schema:
    """An OpenAPI v3 structural schema as a JSON Schema that refuses unknown fields. Rules in CEL are not evaluated."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", None):
        schema.pop("anyOf", None)
        return schema | {"type": ["integer", "string"]}
    if schema.pop("nullable", None) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if "properties" in schema:
        schema["properties"] = {name: strict(child) for name, child in schema["properties"].items()}
        if not free:
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


def prune(crd: Schema) -> Schema:
    """What validation needs of a CustomResourceDefinition: served versions, no descriptions, pods by reference."""

    def bare(value: Any, key: str = "") -> Any:
        if isinstance(value, list):
            return [bare(one) for one in value]
        if not isinstance(value, dict):
            return value
        if key in ("leaderTemplate", "workerTemplate"):
            return _POD_TEMPLATE
        return {
            name: bare(child, name) for name, child in value.items() if not (name == "description" and _is_text(child))
        }

    spec = crd["spec"]
    versions = [
        {"name": one["name"], "schema": bare(one["schema"])}
        for one in spec["versions"]
        if one["served"] and not one["name"].endswith("v1beta1")
    ]
    return {"spec": {"group": spec["group"], "names": spec["names"], "scope": spec["scope"], "versions": versions}}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def main(*manifests: str) -> None:
    """Write crds/ again from the projects' manifests: `python -m tests.helm.schemas CRD.yaml ...`."""
    for path in manifests:
        for crd in yaml.load_all(Path(path).read_text(), Loader=yaml.CSafeLoader):
            if crd:
                name = f"{crd['spec']['names']['plural']}.{crd['spec']['group']}.json"
                text = json.dumps(prune(crd), separators=(",", ":"), sort_keys=True)
                (CRDS / name).write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What an API server refuses although every field has a known name and type: Kubernetes' validation, as far as a chart
can break it (pkg/apis/*/validation), and Pod Security admission.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.helm.engine import Pod, pods_of
from tests.helm.restricted import violations

Object = dict[str, Any]
Find = Callable[[str, str], Object | None]  # an object of a kind by its name

ENFORCE = "pod-security.kubernetes.io/enforce"
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# What cannot be changed once it is there, by kind.
IMMUTABLE = {
    "Deployment": ["spec.selector"],
    "Job": ["spec.selector", "spec.template"],
    "Pod": ["spec.containers", "spec.volumes"],
    "PersistentVolumeClaim": ["spec.accessModes", "spec.storageClassName", "spec.volumeName", "spec.selector"],
    "Secret": ["type"],
    "Service": ["spec.clusterIP"],
}


def refusals(new: Object, old: Object | None, namespace: Object | None) -> list[str]:
    """Why the object cannot be stored in place of `old` (None: created) in `namespace` (None: it lives in none)."""
    found = list(_changes(new, old)) if old is not None else []
    for pod in pods_of(new):
        found += _pod(pod)
        if namespace is not None and namespace["metadata"].get("labels", {}).get(ENFORCE) == "restricted":
            # The plugin looks at pods; their controller would be refused them one by one.
            found += [
                f'violates PodSecurity "restricted:latest": {what}'
                for what in violations(pod.spec, pod.metadata.get("annotations"))
            ]
    return found + list(_of_kind(new))


def _changes(new: Object, old: Object) -> Iterator[str]:
    for path in IMMUTABLE.get(new["kind"], []):
        before, after = (_at(one, path) for one in (old, new))
        if before != after and before is not None:
            yield f"{path}: Invalid value: field is immutable"
    if old.get("immutable") and (new.get("data") != old.get("data") or not new.get("immutable")):
        yield "data: Forbidden: field is immutable when `immutable` is set"


def _at(one: Object, path: str) -> Any:
    value: Any = one
    for key in path.split("."):
        value = (value or {}).get(key)
    return value


def _of_kind(one: Object) -> Iterator[str]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment":
            labels = spec["template"].get("metadata", {}).get("labels", {})
            wanted = spec["selector"].get("matchLabels", {})
            if not wanted or any(labels.get(name) != value for name, value in wanted.items()):
                yield "spec.template.metadata.labels: Invalid value: `selector` does not match template `labels`"
            rolling = spec.get("strategy", {}).get("rollingUpdate", {})
            if all(str(rolling.get(name, 1)).rstrip("%") == "0" for name in ("maxSurge", "maxUnavailable")):
                yield "spec.strategy.rollingUpdate.maxUnavailable: may not be 0 when `maxSurge` is 0"
        case "PodDisruptionBudget":
            if len({"minAvailable", "maxUnavailable"} & spec.keys()) != 1:
                yield "spec: Invalid value: minAvailable and maxUnavailable cannot be both set, one must be"
        case "HorizontalPodAutoscaler":
            if spec.get("minReplicas", 1) > spec["maxReplicas"]:
                yield "spec.maxReplicas: Invalid value: must be greater than or equal to `minReplicas`"
        case "Service":
            yield from _service(one["metadata"]["name"], spec)
        case "Ingress":
            if not (spec.get("rules") or spec.get("defaultBackend")):
                yield "spec: Invalid value: either `defaultBackend` or `rules` must be specified"
        case "PersistentVolumeClaim":
            if not spec.get("accessModes") or "storage" not in spec.get("resources", {}).get("requests", {}):
                yield "spec: Required value: accessModes and resources.requests.storage"


def _service(name: str, spec: Object) -> Iterator[str]:
    ports = spec.get("ports", [])
    if not ports:
        yield "spec.ports: Required value"
    if len(ports) > 1 and not all(port.get("name") for port in ports):
        yield "spec.ports: Required value: name"
    yield from _twice("spec.ports", (port.get("name", "") for port in ports))
    if not _LABEL_NAME.fullmatch(name) or name[0].isdigit():
        yield f"metadata.name: Invalid value: {name!r} is no DNS-1035 label"


def _pod(pod: Pod) -> list[str]:
    return [*_volumes(pod), *(what for one in pod.containers for what in _container(one))]


def _volumes(pod: Pod) -> Iterator[str]:
    volumes = [one["name"] for one in pod.spec.get("volumes", [])]
    yield from _twice("spec.volumes", volumes)
    yield from _twice("spec.containers", (one["name"] for one in pod.containers))
    for container in pod.containers:
        mounts = container.get("volumeMounts", [])
        yield from _twice(f"{container['name']}: mountPath", (mount["mountPath"] for mount in mounts))
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{container['name']}: volumeMounts: Not found: {mount['name']!r}"


def _container(container: Object) -> Iterator[str]:
    name = container["name"]
    if not container.get("image"):
        yield f"{name}: image: Required value"
    if not _LABEL_NAME.fullmatch(name):
        yield f"{name}: name: Invalid value"
    ports = container.get("ports", [])
    yield from _twice(f"{name}: ports", (port["name"] for port in ports if "name" in port))
    yield from (f"{name}: port name {p['name']!r}" for p in ports if not _PORT_NAME.fullmatch(p.get("name", "a")))
    for variable in container.get("env", []):
        if "valueFrom" in variable and "value" in variable:
            yield f"{name}: env {variable['name']}: `valueFrom` may not be specified when `value` is not empty"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe in container and len({"exec", "httpGet", "tcpSocket", "grpc"} & container[probe].keys()) != 1:
            yield f"{name}: {probe}: Required value: must specify a handler type"
    resources = container.get("resources", {})
    for resource, amount in resources.get("requests", {}).items():
        # A GPU cannot be overcommitted: what is requested is the limit.
        if "/" in resource and str(resources.get("limits", {}).get(resource)) != str(amount):
            yield f"{name}: resources.requests: must be equal to {resource} limit"


def _twice(what: str, names: Iterable[str]) -> Iterator[str]:
    yield from (f"{what}: Duplicate value: {name!r}" for name, count in Counter(names).items() if count > 1)


def missing(pod: Pod, find: Find) -> list[str]:
    """Objects, and keys of theirs, that the kubelet must find before it starts the pod."""
    found = set()
    for kind, name, keys in [*_volume_sources(pod), *_variable_sources(pod)]:
        source = find(kind, name)
        if source is None:
            found.add(f"{kind} {name}")
        else:
            held = {**source.get("data", {}), **source.get("stringData", {})}
            found |= {f"key {key} of {kind} {name}" for key in keys if key not in held}
    return sorted(found)


def _volume_sources(pod: Pod) -> Iterator[tuple[str, str, list[str]]]:
    """(kind, name, keys) of what the pod's volumes and its account refer to."""
    if "serviceAccountName" in pod.spec:
        yield "ServiceAccount", pod.spec["serviceAccountName"], []
    for volume in pod.spec.get("volumes", []):
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], []
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
                if (part := source.get(field)) and not part.get("optional"):
                    yield kind, part.get("secretName") or part["name"], [item["key"] for item in part.get("items", [])]


def _variable_sources(pod: Pod) -> Iterator[tuple[str, str, list[str]]]:
    for container in pod.containers:
        for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
            for variable in container.get("env", []):
                if (part := variable.get("valueFrom", {}).get(f"{field}KeyRef")) and not part.get("optional"):
                    yield kind, part["name"], [part["key"]]
            for source in container.get("envFrom", []):
                if (part := source.get(f"{field}Ref")) and not part.get("optional"):
                    yield kind, part["name"], []

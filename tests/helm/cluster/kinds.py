"""What the cluster serves, and the documents by which clients find that out (API discovery, OpenAPI v3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.helm.schemas import custom_resources

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
Document = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind and where it is found: `/apis/apps/v1/namespaces/NAMESPACE/deployments`."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


BUILT_IN = (
    Resource("v1", "Namespace", "namespaces", namespaced=False),
    Resource("v1", "ConfigMap", "configmaps"),
    Resource("v1", "Event", "events"),
    Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Resource("v1", "Pod", "pods"),
    Resource("v1", "Secret", "secrets"),
    Resource("v1", "Service", "services"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("apps/v1", "Deployment", "deployments"),
    Resource("apps/v1", "ReplicaSet", "replicasets"),
    Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Resource("batch/v1", "Job", "jobs"),
    Resource("networking.k8s.io/v1", "Ingress", "ingresses"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
)


def served(groups: Iterable[str]) -> tuple[Resource, ...]:
    """Kubernetes' own kinds, and the custom ones of `groups` ("keda.sh")."""
    wanted = set(groups)
    custom = [
        Resource(api_version, kind, crd["spec"]["names"]["plural"])
        for (api_version, kind), crd in custom_resources().items()
        if crd["spec"]["group"] in wanted
    ]
    return (*BUILT_IN, *custom)


def api_versions(resources: Iterable[Resource]) -> list[str]:
    return sorted({one.api_version for one in resources})


def group_list(resources: Iterable[Resource]) -> Document:
    """`/apis`: every group with its versions."""
    groups = []
    for api_version in api_versions(resources):
        group, _, version = api_version.rpartition("/")
        if group:
            names = {"groupVersion": api_version, "version": version}
            groups.append({"name": group, "versions": [names], "preferredVersion": names})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def resource_list(resources: Iterable[Resource], api_version: str) -> Document:
    """`/apis/GROUP/VERSION`: its kinds."""
    entries = [
        {"name": one.plural, "singularName": one.kind.lower(), "namespaced": one.namespaced, "kind": one.kind}
        | {"verbs": VERBS}
        for one in resources
        if one.api_version == api_version
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}


def prefix(api_version: str) -> str:
    return f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"


def openapi(resources: Iterable[Resource], api_version: str) -> Document:
    """`/openapi/v3/apis/GROUP/VERSION`, of which clients read whether a PATCH takes `fieldValidation`."""
    paths: Document = {}
    for one in resources:
        if one.api_version == api_version:
            place = f"/namespaces/{{namespace}}/{one.plural}" if one.namespaced else f"/{one.plural}"
            group, _, version = api_version.rpartition("/")
            paths[f"/{prefix(api_version)}{place}/{{name}}"] = {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "responses": {"200": {"description": "OK"}},
                    "x-kubernetes-action": "patch",
                    "x-kubernetes-group-version-kind": {"group": group, "kind": one.kind, "version": version},
                }
            }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths}

"""The cluster's objects: created, replaced, applied and deleted by the rules, and every change told to who watches."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.helm import schemas
from tests.helm.cluster import merge
from tests.helm.cluster.admission import missing, refusals
from tests.helm.cluster.kinds import Resource
from tests.helm.engine import Pod, pods_of

Object = dict[str, Any]
Key = tuple[Resource, str, str]  # with namespace ("" for what lives in none) and name


class Refused(Exception):
    """An answer that is an error: HTTP status, Kubernetes' reason for it, and a sentence."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Event:
    version: int
    kind: str  # ADDED, MODIFIED or DELETED
    resource: Resource
    object: Object


@dataclass
class Store:
    """Everything in one cluster. What is read out is a copy."""

    version: str  # Kubernetes'
    news: threading.Condition = field(default_factory=threading.Condition)
    objects: dict[Key, Object] = field(default_factory=dict)
    owners: dict[Key, dict[str, merge.Fields]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    unpullable: set[str] = field(default_factory=set)  # images that no node can pull
    count: int = 0  # of changes so far: the resource version

    def find(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.news:
            try:
                return copy.deepcopy(self.objects[resource, namespace, name])
            except KeyError:
                raise Refused(404, "NotFound", f'{resource.plural} "{name}" not found') from None

    def within(self, resource: Resource, namespace: str = "") -> list[Object]:
        with self.news:
            return [
                copy.deepcopy(one)
                for (kind, place, _), one in self.objects.items()
                if kind == resource and namespace in ("", place)
            ]

    def create(self, resource: Resource, namespace: str, one: Object, *, dry: bool = False) -> Object:
        with self.news:
            key = self._key(resource, namespace, one)
            if key in self.objects:
                raise Refused(409, "AlreadyExists", f'{resource.plural} "{key[2]}" already exists')
            return self._write(key, one, None, {merge.CREATE: merge.leaves(one)}, dry)

    def replace(self, resource: Resource, namespace: str, one: Object, *, dry: bool = False) -> Object:
        with self.news:
            key = self._key(resource, namespace, one)
            old = self.find(*key)
            version = one["metadata"].get("resourceVersion", old["metadata"]["resourceVersion"])
            if version != old["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", f"{key[2]}: the object has been modified")
            changed = frozenset(path for path in merge.leaves(one) if merge.get(old, path) != merge.get(one, path))
            return self._write(key, one, old, self.owners[key] | {merge.UPDATE: changed}, dry)

    def apply(
        self, resource: Resource, namespace: str, one: Object, manager: str, *, force: bool = False, dry: bool = False
    ) -> Object:
        """Server-side apply by `manager`; a field that another one owns is a conflict unless `force`."""
        with self.news:
            key = self._key(resource, namespace, one)
            old = self.objects.get(key)
            self._check_fields(one)
            fields = dict(self.owners.get(key, {}))
            before = fields.pop(manager, frozenset())
            clashes = merge.conflicts(old or {}, one, fields)
            if clashes and not force:
                told = "; ".join(f'conflict with "{other}": .{".".join(path)}' for other, path in clashes)
                raise Refused(409, "Conflict", f"Apply failed with {len(clashes)} conflicts: {told}")
            mine = merge.leaves(one)
            others = {other: paths - {path for _, path in clashes} for other, paths in fields.items()}
            result = merge.apply(old, one, before, others) if old else one
            return self._write(key, result, old, others | {manager: mine}, dry)

    def delete(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.news:
            one = self.find(resource, namespace, name)
            del self.objects[resource, namespace, name], self.owners[resource, namespace, name]
            self._tell("DELETED", resource, one)
            return one

    def changes(self, resource: Resource, namespace: str, seen: int, seconds: float) -> Iterator[Event]:
        """Every change after number `seen`, as they come; ends when `seconds` pass without any."""
        while True:
            with self.news:
                while self.count <= seen:
                    if not self.news.wait(seconds):
                        return
                events, seen = [one for one in self.events if one.version > seen], self.count
            for event in events:
                if event.resource == resource and namespace in ("", event.object["metadata"].get("namespace")):
                    yield event

    def _key(self, resource: Resource, namespace: str, one: Object) -> Key:
        metadata = one.setdefault("metadata", {})
        if (one.get("apiVersion"), one.get("kind")) != (resource.api_version, resource.kind):
            raise Refused(400, "BadRequest", f"this is no {resource.api_version} {resource.kind}")
        if metadata.setdefault("namespace", namespace) != namespace and resource.namespaced:
            raise Refused(400, "BadRequest", "the namespace of the object does not match that of the request")
        if not resource.namespaced:
            metadata.pop("namespace")
        if "name" not in metadata:
            raise Refused(422, "Invalid", "metadata.name: Required value")
        return resource, namespace, metadata["name"]

    def _check_fields(self, one: Object) -> None:
        found = schemas.errors(one, self.version)
        if found:
            raise Refused(400, "BadRequest", f"strict decoding error: {'; '.join(found)}")

    def _write(self, key: Key, one: Object, old: Object | None, owners: dict[str, merge.Fields], dry: bool) -> Object:
        resource, namespace, name = key
        self._check_fields(one)
        place = self._named("Namespace", "", namespace)
        if resource.namespaced and place is None:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
        found = refusals(one, old, place)
        if found:
            raise Refused(422, "Invalid", f'{resource.kind} "{name}" is invalid: {"; ".join(found)}')
        one = self._completed(one, old, owners)
        if not dry:
            self.owners[key] = owners
            self.objects[key] = one
            self._tell("ADDED" if old is None else "MODIFIED", resource, one)
        return copy.deepcopy(one)

    def _completed(self, one: Object, old: Object | None, owners: dict[str, merge.Fields]) -> Object:
        """`one` with what the server and the controllers write into it."""
        before = (old or {}).get("metadata", {})
        generation = before.get("generation", 0) + (old is None or old.get("spec") != one.get("spec"))
        metadata = {
            **one["metadata"],
            "uid": before.get("uid", str(uuid.uuid4())),
            "creationTimestamp": before.get("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
            "generation": generation,
            "resourceVersion": str(self.count + 1),
            "managedFields": [
                merge.managed_fields(manager, one["apiVersion"], paths) for manager, paths in owners.items()
            ],
        }
        one = {**one, "metadata": metadata}
        status = self._status(one)
        return one | {"status": status} if status else one

    def _status(self, one: Object) -> Object | None:
        """What the kind's controller would say, at once and for good."""
        match one["kind"]:
            case "Pod":
                (pod,) = pods_of(one)
                troubles = self._troubles(pod)
                return {"phase": "Failed" if troubles else "Succeeded", "message": "; ".join(troubles)}
            case "PersistentVolumeClaim":
                return {"phase": "Bound"}
            case "Deployment":
                return self._rollout(one)
        return None

    def _rollout(self, one: Object) -> Object:
        (pod,) = pods_of(one)
        troubles = self._troubles(pod)
        wanted = one["spec"].get("replicas", 1)
        ready = 0 if troubles else wanted
        counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, "availableReplicas": ready}
        state = "False" if troubles else "True"
        reason = "ProgressDeadlineExceeded" if troubles else "NewReplicaSetAvailable"
        conditions = [
            {"type": "Available", "status": state},
            {"type": "Progressing", "status": state, "reason": reason, "message": "; ".join(troubles)},
        ]
        return {**counts, "observedGeneration": one["metadata"]["generation"], "conditions": conditions}

    def _troubles(self, pod: Pod) -> list[str]:
        """Why the pod would not start on any node."""
        namespace = pod.owner["metadata"].get("namespace", "")
        found = missing(pod, lambda kind, name: self._named(kind, namespace, name))
        images = [one["image"] for one in pod.containers if one["image"] in self.unpullable]
        return [*found, *(f"cannot pull {image}" for image in images)]

    def _named(self, kind: str, namespace: str, name: str) -> Object | None:
        keys = (key for key in self.objects if (key[0].kind, *key[1:]) == (kind, namespace, name))
        return next((self.objects[key] for key in keys), None)

    def _tell(self, kind: str, resource: Resource, one: Object) -> None:
        self.count += 1
        self.events.append(Event(self.count, kind, resource, copy.deepcopy(one)))
        self.news.notify_all()

"""An API server for Helm's tests: Kubernetes' HTTP interface over a store that refuses what a real one would.

It speaks what Helm's client asks for: discovery, OpenAPI v3, reading, listing, watching, creating, replacing, patching
(server-side apply and merge patches) and deleting. Every object is held against the schemas of the cluster's version,
whatever `fieldValidation` the client asked for. There are no nodes: a Deployment is at once available and a Pod at once
through, unless an image is among `unpullable` or something that it refers to is missing.
"""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any

import yaml

from tests.helm.cluster.http import Handler
from tests.helm.cluster.kinds import Resource, served
from tests.helm.cluster.store import Refused, Store

__all__ = ["Cluster", "Refused"]

EVERY_GROUP = (
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
    "keda.sh",
    "leaderworkerset.x-k8s.io",
    "monitoring.coreos.com",
)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # Helm opens many connections at once, and one that is turned away waits for seconds

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cluster = cluster


class Cluster:
    """A cluster that serves on loopback while its `with` lasts.

    `groups` are the operators' it has beside Kubernetes; `namespaces` those that are there, with their labels.
    """

    def __init__(
        self,
        version: str = "1.34",
        *,
        groups: tuple[str, ...] = EVERY_GROUP,
        namespaces: dict[str, dict[str, str]] | None = None,
    ) -> None:
        self.version = version
        self.store = Store(version)
        self.resources = served(groups)
        self.requests: list[str] = []
        self._http = _Listener(self)
        for name, labels in (namespaces or {}).items():
            self.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def __enter__(self) -> Cluster:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self, namespace: str = "default") -> str:
        """What a client needs to reach it."""
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                "users": [{"name": "test", "user": {}}],
                "contexts": [{"name": "test", "context": context}],
                "current-context": "test",
            }
        )

    def resource(self, kind: str) -> Resource:
        (found,) = [one for one in self.resources if one.kind == kind]
        return found

    def add(self, one: dict[str, Any]) -> dict[str, Any]:
        """Create an object, as somebody else than Helm would."""
        return self.store.create(self.resource(one["kind"]), one["metadata"].get("namespace", ""), one)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        return self.store.find(self.resource(kind), namespace, name)

    def all(self, *kinds: str) -> list[dict[str, Any]]:
        """Every object of `kinds`; without any, all but namespaces."""
        wanted = kinds or [one.kind for one in self.resources if one.kind != "Namespace"]
        return [one for kind in wanted for one in self.store.within(self.resource(kind))]

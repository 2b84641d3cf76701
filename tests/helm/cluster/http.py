"""Kubernetes' HTTP interface: paths, verbs, watches and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.helm.cluster import kinds, merge, protobuf
from tests.helm.cluster.kinds import Resource
from tests.helm.cluster.store import Refused

if TYPE_CHECKING:
    from tests.helm.cluster import Cluster

Document = dict[str, Any]

WATCH_SECONDS = 30.0  # a watch ends after that, and the client begins another


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    disable_nagle_algorithm = True

    @property
    def cluster(self) -> Cluster:
        return self.server.cluster  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_PATCH(self) -> None:
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def handle(self) -> None:
        # A client that has seen enough of a watch closes the connection under it.
        with suppress(BrokenPipeError, ConnectionResetError):
            super().handle()

    def finish(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().finish()

    def _answer(self, work: Callable[[], Document | None]) -> None:
        split = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.parts = [unquote(part) for part in split.path.strip("/").split("/")]
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self.cluster.requests.append(f"{self.command} {self.path}")
        self.code = 200
        try:
            document = work()
        except Refused as refusal:
            self.code = refusal.code
            document = _failure(refusal)
        if document is not None:
            self._send(document)

    def _send(self, document: Document) -> None:
        data = json.dumps(document).encode()
        self.send_response(self.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # What can be asked for

    def _get(self) -> Document | None:
        document = self._about()
        if document is not None:
            return document
        if self.parts == ["openapi", "v2"]:
            self._text("", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")  # of no kind at all
            return None
        resource, namespace, name, part = self._place()
        if part == "log":
            self._text(f"log of {name}\n")
            return None
        if name:
            return self.cluster.store.find(resource, namespace, name)
        if self.query.get("watch") in ("true", "1"):
            self._watch(resource, namespace)
            return None
        # The version first: what changes meanwhile is seen twice by a watch from there on, and never missed.
        metadata = {"resourceVersion": str(self.cluster.store.count)}
        items = [one for one in self.cluster.store.within(resource, namespace) if self._selected(one)]
        kind = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        return {**kind, "metadata": metadata, "items": items}

    def _about(self) -> Document | None:
        """Discovery."""
        resources = self.cluster.resources
        versions = kinds.api_versions(resources)
        match self.parts:
            case ["version"]:
                major, minor = self.cluster.version.split(".")
                return {"major": major, "minor": minor, "gitVersion": f"v{self.cluster.version}.0"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return kinds.group_list(resources)
            case ["api" | "apis", *rest] if "/".join(rest) in versions:
                return kinds.resource_list(resources, "/".join(rest))
            case ["openapi", "v3"]:
                places = {one: f"/openapi/v3/{kinds.prefix(one)}" for one in versions}
                return {"paths": {kinds.prefix(one): {"serverRelativeURL": url} for one, url in places.items()}}
            case ["openapi", "v3", "api" | "apis", *rest] if "/".join(rest) in versions:
                return kinds.openapi(resources, "/".join(rest))
        return None

    def _place(self) -> tuple[Resource, str, str, str]:
        """(resource, namespace, name, subresource) of the path, empty where it names none."""
        length = 2 if self.parts[0] == "api" else 3
        api_version, rest = "/".join(self.parts[1:length]), self.parts[length:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        plural, name, part = (*rest, "", "", "")[:3]
        for resource in self.cluster.resources:
            if (resource.api_version, resource.plural) == (api_version, plural):
                return resource, namespace, name, part
        raise Refused(404, "NotFound", "the server could not find the requested resource")

    def _selected(self, one: Document) -> bool:
        """Whether the request's selectors take `one`."""
        labels = one["metadata"].get("labels", {})
        fields = {f"metadata.{name}": one["metadata"].get(name) for name in ("name", "namespace")}
        for text, values in ((self.query.get("labelSelector"), labels), (self.query.get("fieldSelector"), fields)):
            for term in filter(None, (text or "").split(",")):
                name, sign, value = term.partition("=")
                if name.endswith("!") or not sign:
                    raise Refused(400, "BadRequest", f"this server knows no selector {term!r}")
                if values.get(name) != value.removeprefix("="):
                    return False
        return True

    def _watch(self, resource: Resource, namespace: str) -> None:
        """Events as they come, a line each."""
        if "sendInitialEvents" in self.query:
            raise Refused(422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature is on")
        store = self.cluster.store
        seen = int(self.query.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in store.changes(resource, namespace, seen, WATCH_SECONDS):
            if self._selected(event.object):
                self._chunk(json.dumps({"type": event.kind, "object": event.object}).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _text(self, text: str, media_type: str = "text/plain") -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    # What can be changed

    @property
    def dry(self) -> bool:
        return self.query.get("dryRun") == "All"

    def _sent(self) -> Document:
        """The object in the request's body."""
        if self.headers["Content-Type"] == protobuf.MEDIA_TYPE:
            return protobuf.secret(self.body)
        document: Document = json.loads(self.body)
        return document

    def _post(self) -> Document:
        resource, namespace, _, _ = self._place()
        self.code = 201
        return self.cluster.store.create(resource, namespace, self._sent(), dry=self.dry)

    def _put(self) -> Document:
        resource, namespace, _, _ = self._place()
        return self.cluster.store.replace(resource, namespace, self._sent(), dry=self.dry)

    def _patch(self) -> Document:
        resource, namespace, name, _ = self._place()
        store = self.cluster.store
        match self.headers["Content-Type"]:
            case "application/apply-patch+yaml":
                manager, force = self.query["fieldManager"], self.query.get("force") == "true"
                wanted = yaml.load(self.body, Loader=yaml.CSafeLoader)
                return store.apply(resource, namespace, wanted, manager, force=force, dry=self.dry)
            case "application/merge-patch+json":
                patched = merge.merge_patch(store.find(resource, namespace, name), json.loads(self.body))
                return store.replace(resource, namespace, patched, dry=self.dry)
            case other:
                raise Refused(415, "UnsupportedMediaType", f"this server applies and merges, it knows no {other}")

    def _delete(self) -> Document:
        resource, namespace, name, _ = self._place()
        return self.cluster.store.delete(resource, namespace, name)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are kept in `Cluster.requests`."""


def _failure(refusal: Refused) -> Document:
    told = {"message": str(refusal), "reason": refusal.reason, "code": refusal.code}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", **told}

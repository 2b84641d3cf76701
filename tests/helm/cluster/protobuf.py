"""Secrets as client-go's typed clients send them, for Helm keeps its releases by such a client.

The envelope and the numbers of the fields: https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding,
k8s.io/api/core/v1/generated.proto and k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"

Document = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field's name in JSON and how its value is read: text, bytes, raw, bool, skip, or a message by its fields."""

    name: str
    kind: Any = "text"
    is_map: bool = False


_ENVELOPE = {
    1: Field("typeMeta", {1: Field("apiVersion"), 2: Field("kind")}),
    2: Field("raw", "raw"),
    3: Field("contentEncoding", "skip"),
    4: Field("contentType", "skip"),
}
_METADATA = {
    1: Field("name"),
    2: Field("generateName"),
    3: Field("namespace"),
    4: Field("selfLink", "skip"),
    5: Field("uid"),
    6: Field("resourceVersion"),
    7: Field("generation", "skip"),
    8: Field("creationTimestamp", "skip"),
    11: Field("labels", is_map=True),
    12: Field("annotations", is_map=True),
    17: Field("managedFields", "skip"),
}
_SECRET = {
    1: Field("metadata", _METADATA),
    2: Field("data", "bytes", is_map=True),
    3: Field("type"),
    4: Field("stringData", is_map=True),
    5: Field("immutable", "bool"),
}


def secret(data: bytes) -> Document:
    """The Secret in a request's body, as JSON would have it. Raises ValueError for anything else."""
    if not data.startswith(MAGIC):
        raise ValueError("no protobuf of Kubernetes")
    envelope = _message(data[len(MAGIC) :], _ENVELOPE)
    if envelope["typeMeta"] != {"apiVersion": "v1", "kind": "Secret"}:
        raise ValueError(f"only Secrets are read as protobuf, not {envelope['typeMeta']}")
    return {**envelope["typeMeta"], **_message(envelope["raw"], _SECRET)}


def _message(data: bytes, fields: dict[int, Field]) -> Document:
    result: Document = {}
    for number, value in _wire(data):
        field = fields[number]
        if field.is_map:
            entry = _message(value, {1: Field("key"), 2: Field("value", field.kind)})
            result.setdefault(field.name, {})[entry["key"]] = entry.get("value", "")
        elif field.kind != "skip" and value != b"":
            result[field.name] = _value(value, field.kind)
    return result


def _value(value: Any, kind: Any) -> Any:
    if isinstance(kind, dict):
        return _message(value, kind)
    match kind:
        case "bytes":
            return base64.b64encode(value).decode()
        case "bool":
            return bool(value)
        case "raw":
            return value
    return value.decode()


def _wire(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: a number for wire type 0, bytes for 2; Kubernetes has no others here."""
    place = 0

    def varint() -> int:
        nonlocal place
        result = shift = 0
        while True:
            byte = data[place]
            place += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while place < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            length = varint()
            yield number, data[place : place + length]
            place += length
        else:
            raise ValueError(f"wire type {wire}")

"""The OpenAPI description: what each route takes and gives, and everything that can go wrong there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema
from starlette.responses import Response

from leoserve.api.catalog import FAULTS, WITH_BODY, headers_of, with_status
from leoserve.api.context import context_of
from leoserve.api.keys import Keys
from leoserve.api.protocol.answers import (
    Detokenization,
    ErrorAnswer,
    ModelCard,
    ModelList,
    RenderedChat,
    Status,
    Tokenization,
    Version,
)
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.generated import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from leoserve.api.protocol.responded import ResponseEvent, ResponseObject
from leoserve.api.protocol.responses import ResponsesRequest
from leoserve.api.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from leoserve.api.rates import KINDS

BODIES: Final[list[type[BaseModel]]] = [
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    TokenizeRequest,
    DetokenizeRequest,
]
ANSWERS: Final[list[type[BaseModel]]] = [
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ResponseObject,
    ResponseEvent,
    Tokenization,
    Detokenization,
    RenderedChat,
    ModelList,
    ModelCard,
    Version,
    Status,
    ErrorAnswer,
]
REFERENCE = "#/components/schemas/"
KEY = "key"
INTEGER = {"type": "integer", "minimum": 0}
HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-request-id": ("The request's own when it is short and plain, else a new one.", {"type": "string"}),
    "x-leoserve-warning": ("The unknown fields that were let pass (see `--unknown-fields`).", {"type": "string"}),
    "WWW-Authenticate": ("How to send a key.", {"type": "string"}),
    "Allow": ("The methods that the route takes.", {"type": "string"}),
    "Retry-After": ("Seconds to wait before the next try.", INTEGER),
    "retry-after-ms": ("The same in milliseconds; the SDK looks for it first.", INTEGER),
    "x-should-retry": ("`false`: another try can only fail.", {"type": "string", "enum": ["false"]}),
}
for kind in KINDS:
    HEADERS |= {
        f"x-ratelimit-limit-{kind}": (f"The key's limit of {kind} a minute, where it has one.", INTEGER),
        f"x-ratelimit-remaining-{kind}": (f"How many {kind} are left now.", INTEGER),
        f"x-ratelimit-reset-{kind}": (f"After which time all {kind} are there again, like 6m0s.", {"type": "string"}),
    }
LIMITS = [name for name in HEADERS if name.startswith("x-ratelimit-")]
LIMITED = WITH_BODY - {401, 408, 431, 500}  # errors that may come after a key was counted


def described(
    operation: str,
    tag: str,
    *,
    faults: Iterable[int],
    gives: type[BaseModel] | str | None = None,
    takes: type[BaseModel] | None = None,
    streams: type[BaseModel] | None = None,
) -> dict[str, Any]:
    """How a route is described, for `add_api_route`.

    `operation`: what clients call it; `gives`: the model of its answer, or the media type of one that is no JSON;
    `streams`: the model of an event, where the answer may be a stream; `faults`: the statuses of its errors.
    """
    responses: dict[str, Any] = {
        str(status): {"$ref": f"#/components/responses/{failure_name(status)}"} for status in sorted(faults)
    }
    if gives is not None:
        names = ["x-request-id", *([] if takes is None else ["x-leoserve-warning"]), *(LIMITS if 401 in faults else [])]
        responses["200"] = {"description": "The answer.", "content": content(gives, streams), "headers": headers(names)}
    extra: dict[str, Any] = {"responses": responses}
    if 401 not in faults:
        extra["security"] = []
    if takes is not None:
        body = {"schema": {"$ref": REFERENCE + takes.__name__}}
        extra["requestBody"] = {"required": True, "content": {"application/json": body}}
    plain = {"response_class": Response, "status_code": 404 if gives is None else 200}  # nothing that FastAPI adds
    return {"operation_id": operation, "tags": [tag], "openapi_extra": extra, **plain}


def content(gives: type[BaseModel] | str, streams: type[BaseModel] | None) -> dict[str, Any]:
    if isinstance(gives, str):
        return {gives: {"schema": {"type": "string"}}}
    told: dict[str, Any] = {"application/json": {"schema": {"$ref": REFERENCE + gives.__name__}}}
    if streams is not None:
        end = "" if streams is ResponseEvent else " The last one is `data: [DONE]`."
        names = f"a {streams.__name__} or an {ErrorAnswer.__name__}"
        text = f"With `stream`: server-sent events, whose data is {names}.{end}"
        event = {"x-event-data": {"$ref": REFERENCE + streams.__name__}}
        told["text/event-stream"] = {"schema": {"type": "string", "description": text} | event}
    return told


def failure(status: int) -> dict[str, Any]:
    """The response of one status of errors."""
    faults = with_status(status)
    names = ["x-request-id", *headers_of(faults), *(LIMITS if status in LIMITED else [])]
    return {
        "description": " ".join(fault.when for fault in faults),
        "headers": headers(names),
        "content": {"application/json": {"schema": {"$ref": REFERENCE + ErrorAnswer.__name__}}},
    }


def failure_name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


class Plain(GenerateJsonSchema):
    """Schemas without titles for fields, which only repeat their names and give generated code odd ones."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        told = super().model_schema(schema)
        return {name: value for name, value in told.items() if name != "title"}


def schemas(*, unknown_fields: bool = False) -> dict[str, Any]:
    """The JSON schema of every body and answer, by name. `unknown_fields`: a body may have fields that nobody knows."""
    models = [*BODIES, *ANSWERS]
    _, told = models_json_schema(
        [(model, "validation") for model in models], ref_template=REFERENCE + "{model}", schema_generator=Plain
    )
    found: dict[str, Any] = told["$defs"]
    if unknown_fields:
        for schema in (found[name] for name in reachable(found, [model.__name__ for model in BODIES])):
            schema.pop("additionalProperties", None)
    first = [model.__name__ for model in models]
    return {name: found[name] for name in [*first, *(other for other in found if other not in first)]}


def reachable(found: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """`names`, and those of all schemas that they refer to."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += references(found[name])
    return seen


def references(value: Any) -> list[str]:
    """The names of all schemas that `value` refers to."""
    if isinstance(value, list):
        return [name for item in value for name in references(item)]
    if not isinstance(value, dict):
        return []
    own = value.get("$ref")
    if isinstance(own, str):
        return [own.removeprefix(REFERENCE)]
    return [name for item in value.values() for name in references(item)]


def description(app: FastAPI, root_path: str, *, keyed: bool, unknown_fields: bool) -> dict[str, Any]:
    """The OpenAPI document of `app`. `root_path`: where a proxy serves it; `keyed`: whether it needs a key."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("summary", None)
            operation["responses"].pop("422", None)  # FastAPI's way of refusing; ours is OpenAI's
    scheme = {"type": "http", "scheme": "bearer", "description": "Only needed where the server was given keys."}
    document["components"] = {
        "schemas": schemas(unknown_fields=unknown_fields),
        "responses": {failure_name(status): failure(status) for status in sorted({fault.status for fault in FAULTS})},
        "headers": {
            name: {"description": text, "required": name == "x-request-id", "schema": schema}
            for name, (text, schema) in HEADERS.items()
        },
        "securitySchemes": {KEY: scheme},
    }
    document["security"] = [{KEY: []}] if keyed else [{}, {KEY: []}]
    document["servers"] = [{"url": root_path or "/"}]
    return document


def document_of(request: Request) -> dict[str, Any]:
    """The description of the server that `request` came to, made once."""
    app: FastAPI = request.app
    if app.openapi_schema is None:
        keys: Keys = app.state.keys
        app.openapi_schema = description(
            app,
            request.scope["root_path"],
            keyed=keys.needed,
            unknown_fields=context_of(request).settings.unknown_fields == "warn",
        )
    return app.openapi_schema


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(msgspec.json.encode(document_of(request)), media_type="application/json")

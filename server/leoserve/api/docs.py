"""The description of the API: /openapi.json, and /docs as one page that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.responses import ResponsesRequest
from leoserve.api.protocol.tokenize import DetokenizeRequest, TokenizeRequest

BODIES: list[type[BaseModel]] = [
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    TokenizeRequest,
    DetokenizeRequest,
]
REFERENCE = "#/components/schemas/"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem }
tr { border-bottom: 1px solid #8884 } code { font-size: .9em } :root { color-scheme: light dark }
"""


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """For a route that reads its body itself: what the body is."""
    schema = {"$ref": REFERENCE + model.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def description(app: FastAPI, root_path: str) -> dict[str, Any]:
    """The OpenAPI document of `app`, with the schemas of the bodies. `root_path`: where a proxy serves it."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = models_json_schema([(body, "validation") for body in BODIES], ref_template=REFERENCE + "{model}")
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's way of refusing; ours is OpenAI's
    bearer = {"type": "http", "scheme": "bearer", "description": "Only needed where the server was given keys."}
    document["components"] = {"schemas": schemas["$defs"], "securitySchemes": {"key": bearer}}
    document["security"] = [{}, {"key": []}]
    document["servers"] = [{"url": root_path or "/"}]
    return document


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(
        msgspec.json.encode(description(request.app, request.scope["root_path"])), media_type="application/json"
    )


async def page(request: Request) -> Response:
    """The same for people."""
    document = description(request.app, request.scope["root_path"])
    title = f"{document['info']['title']} {document['info']['version']}"
    parts = [f"<h1>{escape(title)}</h1><p>{escape(document['info']['description'])}"]
    parts.append(' The same for programs: <a href="openapi.json">openapi.json</a>.</p><h2>Routes</h2><table>')
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            what = operation.get("description", "")
            parts.append(f"<tr><td><code>{method.upper()} {escape(path)}</code><td>{escape(what)}")
    parts.append("</table>")
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema:
            parts.append(table(name, schema))
    head = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return HTMLResponse(head + "".join(parts))


def table(name: str, schema: dict[str, Any]) -> str:
    """The fields of one object."""
    required = schema.get("required", [])
    rows = []
    for field, its in schema["properties"].items():
        default = "required" if field in required else msgspec.json.encode(its.get("default")).decode()
        cells = "".join(f"<td><code>{escape(text)}</code>" for text in (field, kind(its), default))
        rows.append(f"<tr>{cells}<td>{escape(its.get('description', ''))}")
    head = "<tr><th>field<th>type<th>default<th>meaning"
    return f"<h2 id={escape(name)}>{escape(name)}</h2><table>{head}{''.join(rows)}</table>"


def kind(schema: dict[str, Any]) -> str:
    """The type of a field in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REFERENCE)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = dict.fromkeys(kind(one) for one in schema[several])
            return " | ".join(name for name in kinds if name != "null")
    if "enum" in schema:
        return " | ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    name = str(schema.get("type", "any"))
    if name == "array":
        return f"[{kind(schema.get('items', {}))}]"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None and name in ("number", "integer"):
        return f"{name} {low:g}…{high:g}"
    return name

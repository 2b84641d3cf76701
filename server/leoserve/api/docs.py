"""The description of the API for people: /docs, one page that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from leoserve.api.openapi import REFERENCE, document_of

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem }
tr { border-bottom: 1px solid #8884 } code { font-size: .9em } :root { color-scheme: light dark }
"""


async def entrance(request: Request) -> Response:
    """Who opens the server's address in a browser is led to the page."""
    return RedirectResponse(request.scope["root_path"] + "/docs")


async def page(request: Request) -> Response:
    """The same for people."""
    document = document_of(request)
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

"""The reference of the API for people, docs/api.md, made of what the server itself says and checks.

python -m leoserve.api.reference > docs/api.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI

from leoserve.api.app import routes
from leoserve.api.catalog import FAULTS
from leoserve.api.keys import Keys
from leoserve.api.openapi import BODIES, HEADERS, REFERENCE, description, reachable
from leoserve.settings import Settings

HEAD = """# The API, field by field

Made by `python -m leoserve.api.reference` from the models that check requests; a running server says the same at
`/openapi.json`, and at `/docs` for people. Fields without a default are required; every other one may also be null,
which means its default. HEAD is answered wherever GET is, without the body. Pages that explain more:
[structured output](structured-output.md), [tools](tools.md), [responses](responses.md), [evaluation](evaluate.md).
"""
NO_EFFECT, REFUSED = "without effect", "Not supported"
GENERATING = {"ChatRequest": "chat", "CompletionRequest": "completions"}
Schema = Mapping[str, Any]


def reference() -> str:
    """The whole page."""
    app = FastAPI(title="leoserve", version="1")
    for router in routes(Keys(Settings())):
        app.include_router(router)
    document = description(app, "", keyed=False, unknown_fields=False)
    return "\n".join([HEAD, *route_table(document), *bodies(document["components"]["schemas"]), *errors(), *headers()])


def route_table(document: Schema) -> Iterator[str]:
    yield "## Routes\n"
    rows = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            key = "" if operation.get("security") == [] else "yes"
            rows.append([code(f"{method.upper()} {path}"), operation.get("description", ""), named(content), key])
    yield from table(["route", "", "body", "needs a key"], rows)


def named(content: Schema) -> str:
    name = content.get("schema", {}).get("$ref", "").removeprefix(REFERENCE)
    return f"[{name}](#{name.lower()})" if name else ""


def bodies(schemas: Mapping[str, Schema]) -> Iterator[str]:
    """The fields of every body, those that chats and completions share once, and of the objects within."""
    first = [body.__name__ for body in BODIES]
    inner = reachable(schemas, first) - set(first)
    yield from shared_fields(schemas["ChatRequest"], schemas["CompletionRequest"])
    for name in [*first[2:], *(name for name in schemas if name in inner)]:
        if "properties" in schemas[name]:
            yield f"\n## {name}\n"
            if said := schemas[name].get("description"):
                yield " ".join(said.split()) + "\n"
            yield from field_tables({name: (its, "") for name, its in schemas[name]["properties"].items()})


def shared_fields(chat: Schema, completion: Schema) -> Iterator[str]:
    yield '\n<a id="chatrequest"></a><a id="completionrequest"></a>\n\n## Chats and completions\n'
    yield "`POST /v1/chat/completions` and `POST /v1/completions`. A field is for both unless the table says which.\n"
    fields: dict[str, tuple[Schema, str]] = {}
    for name in [*chat["properties"], *(name for name in completion["properties"] if name not in chat["properties"])]:
        both = [model["properties"].get(name) for model in (chat, completion)]
        if both[0] == both[1]:
            fields[name] = (chat["properties"][name], "")
            continue
        for its, where in zip(both, ("chat", "completions"), strict=True):
            if its is not None:
                fields[f"{name} ({where})"] = (its, where)
    yield from field_tables(fields)


def field_tables(fields: Mapping[str, tuple[Schema, str]]) -> Iterator[str]:
    """Those with an effect, then those without, then those that are refused."""
    groups: dict[str, list[list[str]]] = {"": [], NO_EFFECT: [], REFUSED: []}
    for title, (its, where) in fields.items():
        said = its.get("description", "")
        group = REFUSED if said.startswith(REFUSED) else NO_EFFECT if said.endswith(f"{NO_EFFECT}.") else ""
        name = code(title.removesuffix(f" ({where})")) + (f" ({where})" if where else "")
        default = code(msgspec.json.encode(its["default"]).decode()) if its.get("default") is not None else ""
        groups[group].append([name, kind(its), default, said])
    if groups[""]:
        yield from table(["field", "type and range", "default", "effect"], groups[""])
    if groups[NO_EFFECT]:
        names = ", ".join(row[0] for row in groups[NO_EFFECT])
        yield f"\nAccepted for compatibility, without effect: {names}.\n"
    if groups[REFUSED]:
        yield "\nKnown, and refused where they ask for something:\n"
        yield from table(["field", "accepted"], [[row[0], row[3].partition(": ")[2]] for row in groups[REFUSED]])


def kind(schema: Schema) -> str:
    """The type of a value and its bounds, in a few words."""
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(REFERENCE)
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = dict.fromkeys(kind(one) for one in schema[several])
            return " or ".join(name for name in kinds if name != "null")
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(code(msgspec.json.encode(value).decode()) for value in values)
    name = str(schema.get("type", "any value"))
    if name == "array":
        return f"array{bounds(schema, 'minItems', 'maxItems')} of {kind(schema.get('items', {}))}"
    if name == "string":
        return f"string{bounds(schema, 'minLength', 'maxLength', ' characters')}"
    if name == "object":
        return f"object{bounds(schema, 'minProperties', 'maxProperties')}"
    return name + numbers(schema)


def bounds(schema: Schema, least: str, most: str, unit: str = "") -> str:
    low, high = schema.get(least), schema.get(most)
    if low is None and high is None:
        return ""
    said = f"{low or 0}…{high}" if high is not None else f"at least {low}"
    return f" ({said}{unit})"


def numbers(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    signs = ((low, "≥"), (above, ">"), (high, "≤"), (below, "<"))
    said = [f"{sign} {bound:_}" for bound, sign in signs if bound is not None]
    return f" ({', '.join(said)})" if said else ""


def errors() -> Iterator[str]:
    """The table of errors."""
    yield "\n## Errors\n"
    yield 'Always `{"error": {"message", "type", "param", "code"}}`, all four; in a stream that has begun as an event,'
    yield "before `data: [DONE]`. `param` is the path of the field at fault, or null.\n"
    rows = []
    for fault in FAULTS:
        codes = ", ".join("null" if one is None else code(one) for one in fault.codes)
        rows.append([str(fault.status), code(fault.type), codes, fault.when, ", ".join(map(code, fault.headers))])
    yield from table(["status", "type", "code", "when", "headers"], rows)


def headers() -> Iterator[str]:
    """The table of headers."""
    yield "\n## Headers of answers\n"
    yield from table(["header", ""], [[code(name), said] for name, (said, _) in HEADERS.items()])
    yield ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    cells = list(head)
    yield f"| {' | '.join(cells)} |"
    yield "|" + "---|" * len(cells)
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"


def code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    print(reference(), end="")

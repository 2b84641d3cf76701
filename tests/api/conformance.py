"""Holds whatever a test's server answers against the description that it serves of itself."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from leoserve.api.app import routes
from leoserve.api.catalog import with_status
from leoserve.api.keys import Keys
from leoserve.api.openapi import HEADERS, REFERENCE, description
from leoserve.settings import Settings

ERROR = {"$ref": REFERENCE + "ErrorAnswer"}


@cache
def document() -> dict[str, Any]:
    """The description of a server with all settings at their defaults."""
    app = FastAPI(title="leoserve", version="0")
    for router in routes(Keys(Settings())):
        app.include_router(router)
    return description(app, "", keyed=False, unknown_fields=False)


@cache
def validator(reference: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": reference, "components": document()["components"]})


def check(value: Any, schema: dict[str, Any]) -> None:
    """Fails when `value` is not as the schema that is referred to has it."""
    if schema.get("type") == "string":
        assert isinstance(value, str)
        return
    faults = [f"{error.json_path}: {error.message}"[:400] for error in validator(schema["$ref"]).iter_errors(value)]
    assert not faults, faults


@cache
def patterns() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Every path that is described, those without parameters first."""
    paths = sorted(document()["paths"].items(), key=lambda item: "{" in item[0])
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations) for path, operations in paths]


def operation_of(request: httpx.Request) -> dict[str, Any] | None:
    method = "get" if request.method == "HEAD" else request.method.lower()
    for pattern, operations in patterns():
        if pattern.fullmatch(request.url.path):
            found: dict[str, Any] | None = operations.get(method)
            return found
    return None


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    found: Any = document()
    if "$ref" not in value:
        return value
    for name in value["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


async def check_response(response: httpx.Response) -> None:
    """What a client of the tests does with every response before the test sees it."""
    operation = operation_of(response.request)
    bodiless = response.request.method == "HEAD"
    if response.status_code >= 400 and not bodiless:
        await response.aread()
        check(response.json(), ERROR)
        check_fault(response)
    if operation is None:
        return
    described = operation["responses"].get(str(response.status_code))
    assert described is not None, f"{response.request.method} {response.request.url}: {response.status_code}"
    described = resolved(described)
    check_headers(response, described["headers"])
    media = response.headers["content-type"].partition(";")[0]
    assert media in described["content"]
    schema = described["content"][media]["schema"]
    if media == "text/event-stream":
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = CheckedStream(response.stream, schema["x-event-data"])
    elif bodiless:
        assert await response.aread() == b""
    elif media == "application/json":
        await response.aread()
        check(response.json(), schema)


def check_headers(response: httpx.Response, described: dict[str, Any]) -> None:
    for name, its in described.items():
        value = response.headers.get(name)
        assert value is not None or not resolved(its)["required"], name
        if value is not None and resolved(its)["schema"]["type"] == "integer":
            assert int(value) >= 0
    names = {name.lower() for name in described}
    known = {name.lower() for name in HEADERS}
    assert {name for name in response.headers if name in known} <= names


def check_fault(response: httpx.Response) -> None:
    """The error is one of the table of errors."""
    error = response.json()["error"]
    rows = [row for row in with_status(response.status_code) if row.type == error["type"]]
    rows = [row for row in rows if error["code"] in row.codes]
    assert rows, f"no such row: {response.status_code} {error}"
    allowed = {name.lower() for row in rows for name in row.headers}
    given = {"www-authenticate", "retry-after", "retry-after-ms", "x-should-retry"} & response.headers.keys()
    assert given <= allowed, given - allowed


class CheckedStream(httpx.AsyncByteStream):
    """A stream whose events are checked as they come."""

    def __init__(self, stream: httpx.AsyncByteStream, schema: dict[str, Any]) -> None:
        self.stream = stream
        self.schema = schema

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self.stream:
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                self.check(event.decode())
            yield part

    def check(self, event: str) -> None:
        data = [line.removeprefix("data: ") for line in event.split("\n") if line.startswith("data: ")]
        if data and data != ["[DONE]"]:
            value = json.loads("\n".join(data))
            check(value, ERROR if value.keys() == {"error"} else self.schema)

    async def aclose(self) -> None:
        await self.stream.aclose()

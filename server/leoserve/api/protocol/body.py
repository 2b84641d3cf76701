"""From the bytes of a request to its checked body."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from leoserve.api.context import context_of
from leoserve.api.errors import ApiError, ClientGone, bad_request, shorten
from leoserve.api.generation import unless_gone
from leoserve.api.protocol.base import RequestBody
from leoserve.api.protocol.faults import MAX_FAULTS, as_bad_request

B = TypeVar("B", bound=RequestBody)
PARSED_AT_ONCE = 1 << 16  # bytes; parsing more would hold up the event loop for longer than a step


async def read_body(request: Request, model: type[B], hold: Callable[[int], None]) -> B:
    """The body of `request`, valid in itself. Raises ApiError.

    `hold` is called with the size of each part as it comes, and may refuse it. A large body is parsed in a thread.
    Fields that nobody knows are refused, or left in `request.state.unknown_fields` where the settings say so.
    """
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Also what keeps a foreign web page from posting here without asking first (a CORS "simple request").
        raise ApiError(415, f"The body must be application/json, not {shorten(media_type)}.", code="unsupported_media")
    parts = []
    try:
        async for part in request.stream():
            hold(len(part))
            parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    raw = b"".join(parts)
    context = context_of(request)
    reject = context.settings.unknown_fields == "reject"
    if len(raw) > PARSED_AT_ONCE:
        body, unknown = await unless_gone(request, context.threads.run(parse, model, raw, reject))
    else:
        body, unknown = parse(model, raw, reject)
    request.state.unknown_fields = unknown
    return body


def parse(model: type[B], raw: bytes, reject_unknown: bool) -> tuple[B, list[str]]:
    """The checked body, and some of the fields that nobody knows, if those are not rejected. Raises ApiError."""
    try:
        body = model.model_validate_json(raw)
    except ValidationError as error:
        raise as_bad_request(error) from None
    unknown = list(islice(body.unknown_fields(), MAX_FAULTS))
    if unknown and reject_unknown:
        names = ", ".join(map(shorten, unknown))
        plural = "s" if len(unknown) > 1 else ""
        message = f"Unrecognized request argument{plural} supplied: {names}"
        raise bad_request(message, shorten(unknown[0]), "unknown_parameter")
    body.check()
    return body, unknown


def warning_headers(request: Request) -> dict[str, str]:
    """The header that names the unknown fields that were let pass."""
    unknown: list[str] = getattr(request.state, "unknown_fields", [])
    if not unknown:
        return {}
    names = ", ".join(map(shorten, unknown))
    return {"x-leoserve-warning": f"unknown fields without effect: {names}".encode("ascii", "replace").decode()}

"""From a request that has just arrived to all that is known before the model is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request as HttpRequest

from leoserve.api.context import ServerContext, context_of
from leoserve.api.errors import bad_request, model_not_found, unavailable
from leoserve.api.generation import unless_gone
from leoserve.api.protocol.base import SamplingFields
from leoserve.api.protocol.body import read_body
from leoserve.api.record import Record

B = TypeVar("B", bound=SamplingFields)
T = TypeVar("T")


async def accept(
    request: HttpRequest,
    endpoint: str,
    model: type[B],
    prepare: Callable[[ServerContext, B, Record, str], T],
    *,
    generates: bool = True,
) -> tuple[B, T]:
    """The checked body of `request`, and what `prepare` makes of it in a thread. Raises ApiError and ClientGone.

    `prepare` is called with the body, the request's record and the salt of its cached prompts. `generates`: whether the
    model will be asked.
    """
    context = context_of(request)
    record = begin(request, endpoint)
    with context.admission.place(generates=generates) as hold:
        body = await read_body(request, model, hold)
        record.model = body.model
        check_servable(context, body)
        salt = cache_salt(request, body)
        return body, await unless_gone(request, context.threads.run(prepare, context, body, record, salt))


def begin(request: HttpRequest, endpoint: str) -> Record:
    """The record of a request that has just arrived."""
    context = context_of(request)
    record = Record(
        context.metrics,
        request.state.request_id,
        endpoint,
        charge=request.state.charge,
        timeout=context.settings.request_timeout,
    )
    request.state.record = record
    return record


def check_servable(context: ServerContext, body: SamplingFields) -> None:
    """Raises ApiError when the model is not served, the server not ready, or too many answers are wanted."""
    check_served(context, body.model)
    if body.choices > context.settings.max_choices:
        param = "n" if body.n == body.choices else "best_of"
        raise bad_request(f"Invalid '{param}': At most {context.settings.max_choices} answers to a prompt.", param)


def check_served(context: ServerContext, model: str) -> None:
    """Raises ApiError when the model is not served or the server not ready."""
    if model not in context.model_ids:
        raise model_not_found(model, context.model_ids)
    if context.engine.ready is None:
        raise unavailable(context.engine.state, 5)


def cache_salt(request: HttpRequest, body: SamplingFields) -> str:
    """Requests with different keys never share cached prompts, nor do those of different `cache_salt`."""
    key_hash: bytes | None = request.state.key_hash
    return f"{key_hash.hex()[:32] if key_hash else ''}:{body.cache_salt or ''}"

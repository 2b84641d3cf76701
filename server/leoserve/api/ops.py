"""The routes that tell about the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

import leoserve
from leoserve.api.context import ServerContext, context_of
from leoserve.api.errors import error_response, model_not_found, unavailable
from leoserve.metrics import CONTENT_TYPE


def as_json(value: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)


async def health(request: Request) -> Response:
    """Alive: 503 when work waits and no step finishes, so that the server should be restarted."""
    engine = context_of(request).engine
    if not engine.healthy:
        return error_response(unavailable("failed", 5))
    return as_json({"status": "ok"})


async def ready(request: Request) -> Response:
    """Ready for requests: 503 while loading, restarting or shutting down."""
    engine = context_of(request).engine
    if engine.state != "ready":
        return error_response(unavailable(engine.state, 5))
    return as_json({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(context_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def version(request: Request) -> Response:
    """The server's version."""
    return as_json({"version": leoserve.__version__})


async def list_models(request: Request) -> Response:
    """The names that the served model answers to."""
    context = context_of(request)
    return as_json({"object": "list", "data": [model_card(context, name) for name in context.model_ids]})


async def get_model(request: Request, model: str) -> Response:
    """One of the served models."""
    context = context_of(request)
    if model not in context.model_ids:
        raise model_not_found(model, context.model_ids)
    return as_json(model_card(context, model))


def model_card(context: ServerContext, name: str) -> dict[str, Any]:
    """`max_model_len`, in tokens, is null until the model has been loaded."""
    engine = context.engine
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "leoserve",
        "root": context.model_ids[0],
        "max_model_len": engine.ready.max_model_len if engine.ready else None,
    }

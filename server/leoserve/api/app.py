"""The application: every route at a glance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

import leoserve
from leoserve.api import auth, chat, completions, docs, errors, ops, responses, tokenize
from leoserve.api.context import ServerContext
from leoserve.api.docs import takes
from leoserve.api.keys import Keys
from leoserve.api.limits import EXPOSED, BodyLimit, RequestId
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.responses import ResponsesRequest
from leoserve.api.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from leoserve.metrics import Metrics


def routes(keys: Keys) -> tuple[APIRouter, APIRouter]:
    """The routes that anyone may call, and those that need one of `keys` (if there are any)."""
    anyone = APIRouter()
    anyone.add_api_route("/health", ops.health, methods=["GET"])
    anyone.add_api_route("/ready", ops.ready, methods=["GET"])
    anyone.add_api_route("/metrics", ops.metrics, methods=["GET"])

    keyed = APIRouter(dependencies=[Depends(auth.require_key(keys))])
    keyed.add_api_route("/v1/chat/completions", chat.create, methods=["POST"], openapi_extra=takes(ChatRequest))
    keyed.add_api_route("/v1/completions", completions.create, methods=["POST"], openapi_extra=takes(CompletionRequest))
    keyed.add_api_route("/v1/responses", responses.create, methods=["POST"], openapi_extra=takes(ResponsesRequest))
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        keyed.add_api_route("/v1/responses/{response}" + path, responses.not_kept, methods=[method])
    keyed.add_api_route(
        "/v1/chat/completions/render", tokenize.render, methods=["POST"], openapi_extra=takes(ChatRequest)
    )
    keyed.add_api_route("/tokenize", tokenize.tokenize, methods=["POST"], openapi_extra=takes(TokenizeRequest))
    keyed.add_api_route("/detokenize", tokenize.detokenize, methods=["POST"], openapi_extra=takes(DetokenizeRequest))
    keyed.add_api_route("/v1/models", ops.list_models, methods=["GET"])
    keyed.add_api_route("/v1/models/{model:path}", ops.get_model, methods=["GET"])
    keyed.add_api_route("/version", ops.version, methods=["GET"])
    keyed.add_api_route("/openapi.json", docs.openapi, methods=["GET"], include_in_schema=False)
    keyed.add_api_route("/docs", docs.page, methods=["GET"], include_in_schema=False)
    return anyone, keyed


def create_app(context: ServerContext) -> FastAPI:
    """The server's ASGI application. Raises SettingsError when the file of keys cannot be read."""
    settings = context.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Metrics]]:
        yield {"metrics": context.metrics}
        context.threads.close()

    app = FastAPI(
        title="leoserve",
        version=leoserve.__version__,
        description="OpenAI-compatible inference server for LeoLM.",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's own pages need no key and load scripts from elsewhere; ours are in `routes`
        redirect_slashes=False,
    )
    app.state.context = context
    for router in routes(Keys(settings)):
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(RequestId)
    return app

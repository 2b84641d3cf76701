"""The application: every route at a glance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

import leoserve
from leoserve.api import auth, chat, completions, docs, errors, openapi, ops, responses, tokenize
from leoserve.api.catalog import ANY, NETWORK, WITH_BODY, WITH_KEY
from leoserve.api.context import ServerContext
from leoserve.api.keys import Keys
from leoserve.api.limits import EXPOSED, BodyLimit, RequestId
from leoserve.api.openapi import described
from leoserve.api.protocol.answers import (
    Detokenization,
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
from leoserve.api.route import Route
from leoserve.metrics import Metrics


def routes(keys: Keys) -> tuple[APIRouter, APIRouter]:
    """The routes that anyone may call, and those that need one of `keys` (if there are any)."""
    anyone = APIRouter(route_class=Route)
    keyed = APIRouter(route_class=Route, dependencies=[Depends(auth.require_key(keys))])
    add_watching(anyone)
    add_generating(keyed)
    add_telling(keyed)
    for router in (anyone, keyed):
        add_heads(router)
    return anyone, keyed


def add_watching(router: APIRouter) -> None:
    """What watches over the server."""
    router.add_api_route(
        "/health", ops.health, methods=["GET"], **described("health", "Server", gives=Status, faults=NETWORK)
    )
    router.add_api_route(
        "/ready", ops.ready, methods=["GET"], **described("ready", "Server", gives=Status, faults=NETWORK)
    )
    router.add_api_route(
        "/metrics", ops.metrics, methods=["GET"], **described("metrics", "Server", gives="text/plain", faults=ANY)
    )


def add_generating(router: APIRouter) -> None:
    """What the model answers."""
    router.add_api_route(
        "/v1/chat/completions",
        chat.create,
        methods=["POST"],
        **described(
            "createChatCompletion",
            "Chat",
            takes=ChatRequest,
            gives=ChatCompletion,
            streams=ChatCompletionChunk,
            faults=WITH_BODY,
        ),
    )
    router.add_api_route(
        "/v1/completions",
        completions.create,
        methods=["POST"],
        **described(
            "createCompletion",
            "Completions",
            takes=CompletionRequest,
            gives=Completion,
            streams=CompletionChunk,
            faults=WITH_BODY,
        ),
    )
    router.add_api_route(
        "/v1/responses",
        responses.create,
        methods=["POST"],
        **described(
            "createResponse",
            "Responses",
            takes=ResponsesRequest,
            gives=ResponseObject,
            streams=ResponseEvent,
            faults=WITH_BODY,
        ),
    )
    for operation, method, path, more in (
        ("getResponse", "GET", "", set()),
        ("deleteResponse", "DELETE", "", set()),
        ("listInputItems", "GET", "/input_items", set()),
        ("cancelResponse", "POST", "/cancel", {429}),
    ):
        router.add_api_route(
            "/v1/responses/{response}" + path,
            responses.not_kept,
            methods=[method],
            **described(operation, "Responses", faults=WITH_KEY | {404} | more),
        )


def add_telling(router: APIRouter) -> None:
    """What is known without asking the model."""
    router.add_api_route(
        "/v1/chat/completions/render",
        tokenize.render,
        methods=["POST"],
        **described("renderChat", "Tokens", takes=ChatRequest, gives=RenderedChat, faults=WITH_BODY),
    )
    router.add_api_route(
        "/tokenize",
        tokenize.tokenize,
        methods=["POST"],
        **described("tokenize", "Tokens", takes=TokenizeRequest, gives=Tokenization, faults=WITH_BODY),
    )
    router.add_api_route(
        "/detokenize",
        tokenize.detokenize,
        methods=["POST"],
        **described("detokenize", "Tokens", takes=DetokenizeRequest, gives=Detokenization, faults=WITH_BODY),
    )
    router.add_api_route(
        "/v1/models",
        ops.list_models,
        methods=["GET"],
        **described("listModels", "Models", gives=ModelList, faults=WITH_KEY),
    )
    router.add_api_route(
        "/v1/models/{model:path}",
        ops.get_model,
        methods=["GET"],
        **described("retrieveModel", "Models", gives=ModelCard, faults=WITH_KEY | {404}),
    )
    router.add_api_route(
        "/version", ops.version, methods=["GET"], **described("version", "Server", gives=Version, faults=WITH_KEY)
    )
    router.add_api_route("/openapi.json", openapi.openapi, methods=["GET"], include_in_schema=False)
    router.add_api_route("/docs", docs.page, methods=["GET"], include_in_schema=False)
    router.add_api_route("/", docs.entrance, methods=["GET"], include_in_schema=False)


def add_heads(router: APIRouter) -> None:
    """HEAD wherever GET is taken: the same answer (RFC 9110, 9.3.2), whose body the HTTP server keeps back. The OpenAPI
    document says so in its description: an operation of its own for each would be one more method of every client."""
    for route in [one for one in router.routes if isinstance(one, Route) and "GET" in (one.methods or ())]:
        router.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


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
        description="OpenAI-compatible inference server for LeoLM. HEAD is answered wherever GET is, without the body.",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's own pages need no key and load scripts from elsewhere; ours are in `routes`
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.keys = Keys(settings, context.board)
    app.state.routers = routes(app.state.keys)
    for router in app.state.routers:
        app.router.routes.extend(router.routes)  # `include_router` would make a request look for its route three times
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

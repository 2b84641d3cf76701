"""Everything that can go wrong for a client, and the one place where it becomes a response.

Every error body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, all four keys, whatever went wrong.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence

import msgspec
from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from leoserve.engine.client import EngineError, EngineRefused, EngineUnavailable
from leoserve.metrics import Metrics, Rejection

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER = 120  # seconds; OpenAI's SDK ignores a longer one
MAX_ECHO = 120  # characters of a client's input that a message repeats
REASONS: dict[int, Rejection] = {
    401: "unauthorized",
    408: "timeout",
    413: "too_large",
    429: "overloaded",
    431: "too_large",
    503: "unavailable",
    504: "timeout",
}
CLIENT_CLOSED = 499  # nginx's status for a client that went away; it is logged, nobody receives it


class ApiError(Exception):
    """An error with the status and the body that the client gets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: Rejection | None = None,
    ) -> None:
        """`reason`: under which it is counted, where status and code do not say it."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.reason = reason

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def model_not_found(model: str, served: Sequence[str]) -> ApiError:
    message = f"The model '{shorten(model)}' does not exist. This server serves: {', '.join(served)}."
    return ApiError(404, message, param="model", code="model_not_found")


def unavailable(state: str, retry_after: float) -> ApiError:
    """503 while the engine is in `state`; the client may come back after `retry_after` seconds."""
    doing = {
        "loading": "is still loading the model",
        "restarting": "is restarting its engine",
        "draining": "is shutting down",
        "failed": "has no working engine",
    }.get(state, "cannot answer now")
    seconds = min(max(1, math.ceil(retry_after)), MAX_RETRY_AFTER)
    headers = {"Retry-After": str(seconds)}
    if state == "draining":
        headers["Connection"] = "close"  # on a new one, a balancer of connections finds another server
    return ApiError(
        503,
        f"The server {doing}. Try again in {seconds} s.",
        type="server_error",
        code="service_unavailable",
        headers=headers,
    )


def overloaded(message: str) -> ApiError:
    """429, with a wait that differs between clients so that they do not all come back at once."""
    milliseconds = random.randint(500, 1500)
    return ApiError(
        429,
        f"The server is at its limit: {message}. Try again shortly.",
        type="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)},
    )


def timed_out(seconds: float, *, begun: bool) -> ApiError:
    """504 after `seconds`. Where the answer had `begun`, the same request would only take as long again."""
    return ApiError(
        504,
        f"The request took longer than the {seconds:g} s that this server gives it.",
        type="server_error",
        code="request_timeout",
        headers={"x-should-retry": "false"} if begun else {"Retry-After": "1"},
    )


def internal_error(message: str = "The server had an error while processing your request.") -> ApiError:
    return ApiError(500, message, type="server_error", code="internal_error")


def as_api_error(error: Exception) -> ApiError:
    """What the client is told about any exception."""
    match error:
        case ApiError():
            return error
        case ClientGone():
            return ApiError(CLIENT_CLOSED, "The client has gone away.")
        case EngineRefused(kind="overloaded"):
            return overloaded(error.message)
        case EngineRefused(kind="invalid_grammar"):
            return bad_request(f"Invalid '{error.param}': {error.message}.", error.param)
        case EngineRefused():
            return bad_request(f"This request can never be served: {error.message}.", code="context_length_exceeded")
        case EngineUnavailable():
            return unavailable(error.state, error.retry_after)
        case EngineError():
            return ApiError(
                503,
                f"This request could not be finished: {error}. Try again in 5 s.",
                type="server_error",
                code="service_unavailable",
                headers={"Retry-After": "5"},
            )
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            return internal_error()


def error_response(error: ApiError) -> Response:
    """The one place where an error becomes a response."""
    return Response(
        msgspec.json.encode(error.body()),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def shorten(value: object) -> str:
    """A client's value for a message: printable and at most `MAX_ECHO` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)[: MAX_ECHO + 1])
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "…"


def rejection(error: ApiError) -> Rejection:
    """Under which reason a refused request is counted."""
    if error.reason is not None:
        return error.reason
    if error.code == "context_length_exceeded":
        return "never_fits"
    return REASONS.get(error.status, "invalid")


async def on_error(request: Request, error: Exception) -> Response:
    api_error = as_api_error(error)
    if api_error.status != 500:
        metrics: Metrics = request.app.state.context.metrics
        metrics.rejected(rejection(api_error))
    record = getattr(request.state, "record", None)
    if record is not None:
        record.fail(api_error)
    return error_response(api_error)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this response; it ends the request inside the server."""
    return Response(status_code=CLIENT_CLOSED)


async def on_unknown_route(request: Request, error: Exception) -> Response:
    message = f"Invalid URL ({request.method} {shorten(request.scope['path'])})"
    return error_response(ApiError(404, message, code="unknown_url"))


async def on_wrong_method(request: Request, error: Exception) -> Response:
    message = f"Not allowed to {request.method} on {shorten(request.scope['path'])}"
    headers = {"Allow": ", ".join(allowed_methods(request))}
    return error_response(ApiError(405, message, code="method_not_supported", headers=headers))


def allowed_methods(request: Request) -> list[str]:
    """Those of all routes that have the request's path: the exception tells of the first one alone."""
    routers: Sequence[APIRouter] = request.app.state.routers
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Runs outside every middleware, so it sets the request's id itself. Starlette raises the error again after it,
    and the HTTP server logs it with its traceback."""
    response = error_response(internal_error())
    response.headers["x-request-id"] = getattr(request.state, "request_id", "")
    return response


def install(app: FastAPI) -> None:
    app.add_exception_handler(404, on_unknown_route)
    app.add_exception_handler(405, on_wrong_method)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(ApiError, on_error)
    app.add_exception_handler(EngineError, on_error)
    app.add_exception_handler(ClientGone, on_client_gone)
    app.add_exception_handler(Exception, on_unexpected)

"""Every error that a client may get, once: for the description of the API, and for its reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ErrorType = Literal["invalid_request_error", "server_error", "requests", "tokens"]

ANY = frozenset({400, 408, 431, 500})  # of whatever is sent to the server
NETWORK = ANY | {503}  # and beyond the connections that are served
WITH_KEY = NETWORK | {401}
WITH_BODY = WITH_KEY | {404, 413, 415, 429, 504}


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table of errors. `codes`: those that `error.code` may have; `headers`: that it may come with."""

    status: int
    type: ErrorType
    codes: tuple[str | None, ...]
    when: str
    headers: tuple[str, ...] = ()


def bad(*codes: str | None, when: str) -> Fault:
    return Fault(400, "invalid_request_error", codes, when)


FAULTS = (
    bad(None, when="The request is no HTTP, its body is no JSON, or its fields contradict each other or the model."),
    bad("missing_required_parameter", when="A field is missing."),
    bad("invalid_type", when="A value is of another type than the field takes."),
    bad("invalid_value", when="A value is of the right type and still not one that the field takes."),
    bad(
        "integer_above_max_value",
        "integer_below_min_value",
        "decimal_above_max_value",
        "decimal_below_min_value",
        when="A number is out of its range.",
    ),
    bad(
        "array_above_max_length",
        "array_below_min_length",
        "empty_array",
        "string_above_max_length",
        "string_below_min_length",
        "empty_string",
        "object_above_max_length",
        when="An array, a text or an object is too long or too short.",
    ),
    bad("unknown_parameter", when="A field has a name that no part of the server knows (see `--unknown-fields`)."),
    bad("unsupported_parameter", when="A field asks for what this server does not do."),
    bad("unsupported_value", when="A value asks for what this server does not do."),
    bad("context_length_exceeded", when="Prompt and answer are longer than the model's context, or than its cache."),
    Fault(
        401,
        "invalid_request_error",
        ("invalid_api_key",),
        "The server has keys, and the request has none of them.",
        ("WWW-Authenticate",),
    ),
    Fault(404, "invalid_request_error", ("model_not_found",), "No model of this name is served."),
    Fault(404, "invalid_request_error", ("unknown_url",), "There is no such route."),
    Fault(404, "invalid_request_error", (None,), "A response is asked for, and this server keeps none."),
    Fault(405, "invalid_request_error", ("method_not_supported",), "The route takes another method.", ("Allow",)),
    Fault(
        408,
        "invalid_request_error",
        ("request_timeout",),
        "The request's header did not come to its end in 30 s, or its body in 300 s.",
    ),
    Fault(413, "invalid_request_error", ("request_too_large",), "The body is larger than `--max-body-bytes`."),
    Fault(415, "invalid_request_error", ("unsupported_media",), "The body is not `application/json`."),
    Fault(
        429,
        "requests",
        ("rate_limit_exceeded",),
        "The key's requests of this minute are spent (`--requests-per-minute`); or too many answers wait already.",
        ("Retry-After", "retry-after-ms"),
    ),
    Fault(
        429,
        "tokens",
        ("rate_limit_exceeded",),
        "The key's tokens of this minute are spent (`--tokens-per-minute`), or would be by this request. One that can "
        "never be let in has `x-should-retry: false` instead of a wait.",
        ("Retry-After", "retry-after-ms", "x-should-retry"),
    ),
    Fault(
        431,
        "invalid_request_error",
        ("header_too_large",),
        "URL and header fields together are larger than 64 KiB, or there are more than 256.",
    ),
    Fault(500, "server_error", ("internal_error",), "The server has an error. Its log says which."),
    Fault(
        503,
        "server_error",
        ("service_unavailable",),
        "The server is loading, restarting or shutting down, or has as many connections as it takes.",
        ("Retry-After",),
    ),
    Fault(
        504,
        "server_error",
        ("request_timeout",),
        "The request took longer than `--request-timeout`. Where the answer had begun, `x-should-retry: false` says "
        "that it would only take as long again.",
        ("Retry-After", "x-should-retry"),
    ),
)


def with_status(status: int) -> list[Fault]:
    return [fault for fault in FAULTS if fault.status == status]


def headers_of(faults: Iterable[Fault]) -> list[str]:
    """The headers that one of `faults` may have, each once."""
    return list(dict.fromkeys(name for fault in faults for name in fault.headers))

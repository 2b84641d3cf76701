"""What clients may ask for, and how much of it at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from leoserve.settings.option import option


class LimitOptions(BaseModel):
    max_waiting_requests: int = option(
        1024,
        "Limits",
        "Answers that may wait for a place; beyond it a client gets 429 at once. Raise it for large batch jobs.",
        ge=0,
    )
    max_waiting_tokens: int = option(
        4_000_000,
        "Limits",
        "Prompt tokens that may wait for a place; beyond it a client gets 429 at once. Raise it for large batch jobs.",
        unit="tokens",
        ge=0,
    )
    requests_per_minute: int | None = option(
        None,
        "Limits",
        "Requests that each key may send in a minute, or all clients together where no key is needed; beyond it a "
        "client gets 429. Set it where one client could starve the others.",
        unset="no limit",
        ge=1,
        le=10**9,
    )
    tokens_per_minute: int | None = option(
        None,
        "Limits",
        "Tokens of prompts and answers that each key may use in a minute, or all clients together where no key is "
        "needed; beyond it a client gets 429. Set it where one client could starve the others.",
        unit="tokens",
        unset="no limit",
        ge=1,
        le=10**12,
    )
    request_timeout: float | None = option(
        None,
        "Limits",
        "How long one request may take from its arrival to the end of its answer; a longer one is ended with 504, or "
        "with an error in its stream. Set it where nobody waits longer anyway.",
        unit="s",
        unset="no limit",
        gt=0,
        le=10**7,
    )
    max_choices: int = option(
        128,
        "Limits",
        "Most answers one prompt may ask for (n or best_of). Lower it on a shared server.",
        ge=1,
        le=1024,
    )
    max_connections: int = option(
        2048,
        "Limits",
        "Client connections that are served; on further ones all but /health, /ready and /metrics is a 503. Raise it "
        "for very many streams.",
        ge=1,
    )
    max_body_bytes: int = option(
        8 << 20,
        "Limits",
        "Largest request body; a larger one gets 413. Raise it for batches of very long prompts.",
        unit="bytes",
        ge=1024,
    )
    unknown_fields: Literal["reject", "warn"] = option(
        "reject",
        "Limits",
        "What happens to a request with a field nobody knows: reject it with 400, or serve it and name the field in a "
        "warning header. warn for clients that send fields of other servers.",
    )

"""The records that cross the socket between the API process and the engine process.

Every record is a `msgspec.Struct`; none holds a tensor. Times are seconds of `time.monotonic()`, which on one machine
is the same clock in every process.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from leoserve.model.step import ErrorKind, Grammar, SamplingParams, TokenLogprobs, TokenTable

__all__ = [
    "Abort",
    "EngineStats",
    "ErrorKind",
    "Failed",
    "FinishReason",
    "FromEngine",
    "Grammar",
    "Ready",
    "RefusalKind",
    "Refused",
    "Request",
    "SamplingParams",
    "StepOutputs",
    "ToEngine",
    "TokenLogprobs",
    "TokenOutput",
    "TokenTable",
]

RefusalKind = Literal["overloaded", "never_fits", "invalid_grammar"]
FinishReason = Literal["stop", "length", "abort", "error"]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """One request to the engine: a prompt and `params.n` choices. `priority`: lower runs earlier."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    arrival: float
    priority: int = 0
    salt: str = ""  # requests of different salts never share cached prefixes


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """End a request, or one choice of it, in whatever state it is. Unknown ids are ignored."""

    request_id: str
    index: int | None = None


class TokenOutput(msgspec.Struct, array_like=True, gc=False):
    """New tokens of one choice. The token that stopped it is the last of `token_ids`, and `stop_token` repeats it."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one a token, when asked for
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache had, repeated in every output
    scheduled_at: float = 0.0  # when the choice first got a place in a step
    error: str | None = None  # with finish_reason "error"
    # "invalid": the request's own parameters leave nothing to answer; "grammar": its grammar cannot be followed.
    error_kind: ErrorKind = "internal"
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # in the first output of choice 0, when asked for


class EngineStats(msgspec.Struct, array_like=True, gc=False):
    """A snapshot after a step. Totals count from the engine's start."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0  # referenced by a sequence; cached but unreferenced blocks count as free
    preemptions: int = 0
    prompt_tokens: int = 0  # computed, without cached ones
    cached_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    step_tokens: int = 0  # of the last step
    step_seconds: float = 0.0  # of the last step


class StepOutputs(msgspec.Struct, tag="outputs"):
    """All that one step brought, in one message."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Refused(msgspec.Struct, tag="refused"):
    """A request that was not admitted."""

    request_id: str
    kind: RefusalKind
    message: str
    param: str | None = None  # the field at fault


class Ready(msgspec.Struct, tag="ready"):
    """The engine serves. What the API process needs to know of it."""

    max_model_len: int
    block_size: int
    num_blocks: int
    vocab_size: int  # rows of the network
    max_num_seqs: int
    dtype: str
    device: str
    attention: str
    weight_bytes: int


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot start: one line that says what to do."""

    message: str


ToEngine = Request | Abort | TokenTable
FromEngine = StepOutputs | Refused | Ready | Failed

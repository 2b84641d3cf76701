"""What /v1/responses answers, whole and event by event; see `answers` on what these models are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from leoserve.api.protocol.answers import Answer, CachedTokens, Count, Unix
from leoserve.api.protocol.generated import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
EventType = Literal[
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
]


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[TokenLogprob]


class OutputMessage(Answer):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Answer):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = Field(description="JSON text.")


class CachedInput(CachedTokens):
    cache_write_tokens: Count


class ReasoningTokens(Answer):
    reasoning_tokens: Count


class ResponseUsage(Answer):
    input_tokens: Count
    input_tokens_details: CachedInput
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class ResponseError(Answer):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"]


class ResponseObject(Answer):
    """The answer, and the settings that it was made with."""

    id: str
    object: Literal["response"]
    created_at: Unix
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    background: Literal[False]
    reasoning: dict[str, Any]
    store: Literal[False]
    temperature: float
    top_p: float
    top_logprobs: Count
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    truncation: Literal["auto", "disabled"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"]


class ResponseEvent(Answer):
    """One event of a stream, with more fields by its type, as OpenAI has them."""

    model_config = ConfigDict(extra="allow")

    type: EventType
    sequence_number: Count

"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from leoserve.api.errors import bad_request
from leoserve.api.protocol.base import (
    MAX_LOGPROBS,
    Body,
    SamplingFields,
    Unsupported,
    fault,
    ignored,
    only,
    unsupported,
)

MAX_MESSAGES = 4096  # more than a context of 16,384 tokens can hold
MAX_PARTS = 1024  # of one message
MAX_TEMPLATE_VALUE = 4096  # characters of one value in chat_template_kwargs


class ContentPart(Body):
    """One part of a message. Only parts of text can be served."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @field_validator("type")
    @classmethod
    def is_text(cls, value: str) -> str:
        if value not in ("text", "refusal"):
            raise fault(f"Parts of type '{value[:40]}' are not supported, only 'text'")
        return value

    def as_text(self) -> str | None:
        return self.text if self.type == "text" else self.refusal


def is_scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)) or len(str(value)) > MAX_TEMPLATE_VALUE:
        raise fault(f"Should be a boolean, a number or a text of at most {MAX_TEMPLATE_VALUE} characters")
    return value


TemplateValue = Annotated[Any, AfterValidator(is_scalar)]


def text_or_parts(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<parts>")],
    Discriminator(text_or_parts),
]


class Message(Body):
    """One message of a chat. `null` content is for an assistant's message that only called tools."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(None, description="Given to the chat template, if that uses names.")
    tool_call_id: str | None = Field(None, description="Given to the chat template, if that knows tools.")
    refusal: str | None = ignored()
    reasoning_content: str | None = ignored()
    annotations: list[Any] | None = ignored()
    tool_calls: Annotated[Any, only([])] = unsupported("null or []")
    function_call: Unsupported = unsupported()
    audio: Unsupported = unsupported()

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: content is a string, and a developer speaks as the system."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text()}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.as_text() or "" for part in self.content)
        return self.content or ""


class ChatRequest(SamplingFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="The chat so far."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Most tokens of an answer. Default: to the end of the model's context."
    )
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="The older name of `max_completion_tokens`.")
    logprobs: bool = Field(False, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="And those of this many most likely tokens; only with `logprobs`."
    )
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt with the beginning of the assistant's turn. Default: yes, unless continuing."
    )
    continue_final_message: bool = Field(False, description="Continue the last message instead of answering it.")
    chat_template_kwargs: dict[str, TemplateValue] = Field(
        default_factory=dict, max_length=32, description="Variables for the chat template, of those it knows."
    )

    reasoning_effort: str | None = ignored()
    verbosity: str | None = ignored()
    prediction: dict[str, Any] | None = ignored()
    parallel_tool_calls: bool | None = ignored()

    tools: Any = Field(None, description="Not supported yet: only null, [] or `tool_choice` 'none' is accepted.")
    tool_choice: Annotated[Any, only("none", "auto")] = unsupported("'none' or 'auto'")
    functions: Annotated[Any, only([])] = unsupported("null or []")
    function_call: Annotated[Any, only("none", "auto")] = unsupported("'none' or 'auto'")
    response_format: Annotated[Any, only({"type": "text"})] = unsupported("{'type': 'text'}")
    modalities: Annotated[Any, only(["text"])] = unsupported("['text']")
    audio: Unsupported = unsupported()
    web_search_options: Unsupported = unsupported()
    moderation: Unsupported = unsupported()

    def check(self) -> None:
        super().check()
        if self.tools not in (None, []) and self.tool_choice != "none":
            raise bad_request("Invalid 'tools': This server does not support calling tools.", "tools")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
        if self.add_generation_prompt and self.continue_final_message:
            raise bad_request(
                "'continue_final_message' and 'add_generation_prompt' exclude each other.", "continue_final_message"
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise bad_request(
                "With 'continue_final_message' the last message must be the assistant's.", "continue_final_message"
            )
        for index, message in enumerate(self.messages):
            if message.content is None and message.role != "assistant":
                raise bad_request(
                    f"Invalid 'messages[{index}].content': A message of the {message.role} needs content.",
                    f"messages[{index}].content",
                )

    @property
    def max_answer(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most likely tokens beside the chosen one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

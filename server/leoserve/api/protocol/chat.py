"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from leoserve.api.errors import bad_request
from leoserve.api.protocol.base import (
    MAX_LOGPROBS,
    Body,
    Only,
    Unsupported,
    fault,
    ignored,
    unsupported,
)
from leoserve.api.protocol.structured import StructuredFields
from leoserve.api.protocol.tools import (
    MAX_ID,
    MAX_TOOLS,
    AllowedChoice,
    CalledFunction,
    FunctionCallChoice,
    FunctionDefinition,
    FunctionName,
    MessageToolCall,
    NamedChoice,
    ToolChoice,
    ToolDefinition,
)
from leoserve.api.tools import calling_of, check_results, check_tools
from leoserve.text.tools import Calling

MAX_MESSAGES = 4096  # more than a context of 16,384 tokens can hold
MAX_PARTS = 1024  # of one message
MAX_TEMPLATE_VALUE = 4096  # characters of one value in chat_template_kwargs


def is_text(value: str) -> str:
    if value not in ("text", "refusal"):
        raise fault(f"Parts of type '{value[:40]}' are not supported, only 'text'")
    return value


class ContentPart(Body):
    """One part of a message. Only parts of text can be served."""

    type: Annotated[str, AfterValidator(is_text), WithJsonSchema({"type": "string", "enum": ["text", "refusal"]})] = (
        Field(description="Images, sound and files cannot be read, and nothing is ever fetched.")
    )
    text: str | None = Field(None, description="The text.")
    refusal: str | None = Field(None, description="The text of a refusal.")

    def as_text(self) -> str | None:
        return self.text if self.type == "text" else self.refusal


def is_scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)) or len(str(value)) > MAX_TEMPLATE_VALUE:
        raise fault(f"Should be a boolean, a number or a text of at most {MAX_TEMPLATE_VALUE} characters")
    return value


SCALAR = {"anyOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string", "maxLength": MAX_TEMPLATE_VALUE}]}
TemplateValue = Annotated[Any, AfterValidator(is_scalar), WithJsonSchema(SCALAR)]


def text_or_parts(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<parts>")],
    Discriminator(text_or_parts),
]


class Message(Body):
    """One message of a chat. `null` content is for an assistant's message that only called tools."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="Who speaks; a developer speaks as the system."
    )
    content: Content | None = Field(
        None, description="A text, or parts of text. Only an assistant's message may have none."
    )
    name: str | None = Field(None, description="Given to the chat template, if that uses names.")
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(
        default_factory=list, description="The calls that the assistant made."
    )
    tool_call_id: Annotated[str, Field(max_length=MAX_ID)] | None = Field(
        None, description="Of a tool's message: the call that it is the result of."
    )
    function_call: CalledFunction | None = Field(None, description="The older form of one call in `tool_calls`.")
    refusal: str | None = ignored()
    reasoning_content: str | None = ignored()
    annotations: list[Any] | None = ignored()
    audio: Unsupported = unsupported()
    parsed: Any = ignored("What the SDK adds to an answer that it has parsed; accepted, without effect.")

    def check_at(self, path: str) -> None:
        """Raises ApiError that names the field under `path`."""

        def refuse(field: str, message: str) -> None:
            raise bad_request(f"Invalid '{path}.{field}': {message}", f"{path}.{field}")

        if self.content is None and self.role != "assistant":
            refuse("content", f"A message of the {self.role} needs content.")
        if self.role != "assistant" and self.tool_calls:
            refuse("tool_calls", "Only an assistant's message has calls.")
        if self.role != "assistant" and self.function_call is not None:
            refuse("function_call", "Only an assistant's message has a call.")
        if self.tool_calls and self.function_call is not None:
            refuse("function_call", "It is the older form of 'tool_calls'; send one of them.")
        if self.role == "tool" and self.tool_call_id is None:
            raise bad_request(f"Missing required parameter: '{path}.tool_call_id'.", f"{path}.tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            refuse("tool_call_id", "Only a tool's message is the result of a call.")
        if self.role == "function" and self.name is None:
            raise bad_request(f"Missing required parameter: '{path}.name'.", f"{path}.name")

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: content is a string, and a developer speaks as the system."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text()}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message

    def in_newer_form(self) -> dict[str, Any]:
        """The same with a tool's call and result for those of a function."""
        message = self.for_template()
        if self.function_call is not None:
            message["tool_calls"] = [{"id": "", "type": "function", "function": self.function_call.for_template()}]
        if self.role == "function":
            message |= {"role": "tool", "tool_call_id": ""}
        return message

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.as_text() or "" for part in self.content)
        return self.content or ""

    def texts(self) -> Iterator[str]:
        """All that it adds to a prompt."""
        yield self.text()
        for call in self.tool_calls:
            yield call.function.arguments
        if self.function_call is not None:
            yield self.function_call.arguments


class ChatRequest(StructuredFields):
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

    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(
        default_factory=list, description="Functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="`auto`: the model decides whether to call; `none`: it cannot; `required`: it must; an object: "
        "which function it must call, or which ones it may. Default: `auto` with `tools`.",
    )
    parallel_tool_calls: bool = Field(True, description="Whether one answer may have several calls.")
    functions: Annotated[list[FunctionDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(
        default_factory=list, description="The older form of `tools`; the answer then has `function_call`."
    )
    function_call: FunctionCallChoice | None = Field(
        None, description="The older form of `tool_choice`: `auto`, `none`, or the name of a function in an object."
    )
    modalities: Annotated[Any, Only(["text"])] = unsupported("['text']")
    audio: Unsupported = unsupported()
    web_search_options: Unsupported = unsupported()
    moderation: Unsupported = unsupported()

    def check(self) -> None:
        super().check()
        self.check_choice()
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
            message.check_at(f"messages[{index}]")
        check_results([message.for_template() for message in self.messages])
        if self.continue_final_message and (self.messages[-1].tool_calls or self.messages[-1].function_call):
            raise bad_request("A message that ends with calls cannot be continued.", "continue_final_message")

    def check_choice(self) -> None:
        """What `tools` and the fields about them say together. Raises ApiError."""
        if self.functions and self.tools:
            raise bad_request("'functions' is the older form of 'tools'; send one of them.", "functions")
        check_tools([tool.function.as_tool() for tool in self.tools])
        check_tools([function.as_tool() for function in self.functions], "functions[{}]")
        empty = "tools" in self.model_fields_set  # a client that builds its list need not care that it came out empty
        if not self.tools and self.tool_choice not in (None, "none") and not (empty and self.tool_choice == "auto"):
            raise bad_request("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        if not self.functions and self.function_call not in (None, "none"):
            raise bad_request("'function_call' is only allowed when 'functions' are specified.", "function_call")
        _ = self.calling

    @cached_property
    def calling(self) -> Calling | None:
        """Which functions the answer may call; None when it may call none. Raises ApiError."""
        if self.functions:
            tools = [function.as_tool() for function in self.functions]
            if self.function_call == "none":
                return None
            name = self.function_call.name if isinstance(self.function_call, FunctionName) else None
            return calling_of(tools, named=name, parallel=False, field="function_call")
        tools = [tool.function.as_tool() for tool in self.tools]
        parallel = self.parallel_tool_calls
        match self.tool_choice:
            case NamedChoice(function=function):
                return calling_of(tools, named=function.name, parallel=parallel)
            case AllowedChoice(allowed_tools=its):
                names = {one.function.name for one in its.tools}
                return calling_of(tools, its.mode, allowed=names, parallel=parallel)
            case "none":
                return None
            case "required":
                return calling_of(tools, "required", parallel=parallel)
            case _:
                return calling_of(tools, parallel=parallel) if tools else None

    @property
    def max_answer(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most likely tokens beside the chosen one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from leoserve.api.errors import bad_request, shorten
from leoserve.api.protocol.base import (
    MAX_LOGPROBS,
    NULL,
    Body,
    Only,
    SamplingFields,
    Unsupported,
    fault,
    ignored,
    text_or_texts,
    unsupported,
)
from leoserve.api.protocol.chat import MAX_MESSAGES, MAX_PARTS
from leoserve.api.protocol.structured import StructuredOutputs
from leoserve.api.protocol.tools import MAX_ID, MAX_TOOLS, Name
from leoserve.text.tools import Tool

LOGPROBS = "message.output_text.logprobs"
STATELESS = "This server keeps no responses: send the whole conversation in 'input'"
PARTS = ("input_text", "output_text", "refusal")
KINDS = {
    "message": "<message>",
    "function_call": "<call>",
    "function_call_output": "<result>",
    "reasoning": "<reasoning>",
}


def stateless() -> AfterValidator:
    """For a field that asks for what an earlier request has left on the server."""

    def check(value: Any) -> Any:
        if value is None:
            return value
        raise fault(STATELESS)

    return AfterValidator(check)


def is_text(value: str) -> str:
    if value not in PARTS:
        raise fault(f"Parts of type '{shorten(value)}' are not supported, only text: {', '.join(PARTS)}")
    return value


def is_function(value: str) -> str:
    if value != "function":
        raise fault(f"Tools of type '{shorten(value)}' are not supported, only 'function'")
    return value


def one_of(*names: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


Stateful = Annotated[Any, stateless(), WithJsonSchema(NULL)]


class InputPart(Body):
    """A part of a text. Images, sound and files cannot be read, and nothing is ever fetched."""

    type: Annotated[str, AfterValidator(is_text), one_of(*PARTS)] = Field(description="Only parts of text are read.")
    text: str | None = Field(None, description="The text.")
    refusal: str | None = Field(None, description="The text of a refusal.")
    annotations: list[Any] | None = ignored()
    logprobs: list[Any] | None = ignored()
    prompt_cache_breakpoint: dict[str, Any] | None = ignored()

    def as_text(self) -> str:
        return (self.refusal if self.type == "refusal" else self.text) or ""


Text = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<texts>")],
    Discriminator(text_or_texts),
]


def plain(text: str | list[InputPart]) -> str:
    return text if isinstance(text, str) else "\n".join(part.as_text() for part in text)


class Item(Body):
    """What every item of an input may have that this server told of it."""

    id: str | None = ignored()
    status: Literal["in_progress", "completed", "incomplete"] | None = ignored()


class MessageItem(Item):
    """A message. `type` may be left out."""

    type: Literal["message"] = Field("message", description="Always `message`.")
    role: Literal["system", "developer", "user", "assistant"] = Field(description="A developer speaks as the system.")
    content: Text = Field(description="A text, or parts of text.")
    phase: str | None = ignored()


class CallItem(Item):
    """A call that the model has made."""

    type: Literal["function_call"] = Field(description="Always `function_call`.")
    call_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)] = Field(description="What its result repeats.")
    name: Annotated[str, Field(max_length=MAX_ID)] = Field(description="The function that was called.")
    arguments: str = Field(description="The arguments as JSON text.")
    namespace: str | None = ignored()
    caller: dict[str, Any] | None = ignored()
    async_: bool | None = Field(None, alias="async", description="Accepted for compatibility, without effect.")


class ResultItem(Item):
    """What came of a call."""

    type: Literal["function_call_output"] = Field(description="Always `function_call_output`.")
    call_id: str = Field(description="That of a call earlier in `input`.")
    output: Text = Field(description="A text, or parts of text.")
    name: str | None = ignored()
    namespace: str | None = ignored()
    caller: dict[str, Any] | None = ignored()


class ReasoningItem(Item):
    """What another model has thought. Accepted, and not shown to this one."""

    type: Literal["reasoning"] = Field(description="Always `reasoning`.")
    summary: list[Any] | None = ignored()
    content: list[Any] | None = ignored()
    encrypted_content: str | None = ignored()


def item_kind(value: Any) -> str:
    """The branch of an item, which `is_known` has let through."""
    return KINDS[(value.get("type") if isinstance(value, Mapping) else None) or "message"]


def is_known(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "item_reference":
        raise fault(f"Items cannot be referred to. {STATELESS}")
    if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
        raise fault(f"Items of type '{shorten(kind)}' are not supported, only: {', '.join(KINDS)}")
    return value


InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<call>")]
    | Annotated[ResultItem, Tag("<result>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(item_kind),
    BeforeValidator(is_known),
]
Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), Tag("<texts>")],
    Discriminator(text_or_texts),
]


class TextFormat(Body):
    """What the text must be. `name` and `schema` belong to `json_schema`."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Any text, a JSON object, or a schema's.")
    name: Name | None = Field(None, description="Of the schema; needed with `json_schema`.")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Needed with `json_schema`.")
    strict: bool | None = ignored("Every schema is followed strictly.")
    description: str | None = ignored()

    def check(self) -> None:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if self.type == "json_schema" and value is None:
                raise bad_request(f"Missing required parameter: 'text.format.{name}'.", f"text.format.{name}")
            if self.type != "json_schema" and value is not None:
                raise bad_request(f"'{name}' is only allowed with the format 'json_schema'.", f"text.format.{name}")


class TextConfig(Body):
    format: TextFormat | None = Field(None, description="Default: any text.")
    verbosity: str | None = ignored()


class FunctionTool(Body):
    """A function that the model may call."""

    type: Annotated[str, AfterValidator(is_function), one_of("function")] = Field(description="Always `function`.")
    name: Name = Field(description="Letters, digits, `_` and `-`, at most 64.")
    description: str | None = Field(None, description="What it does, for the model to know when to call it.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of the arguments.")
    strict: bool = Field(True, description="The arguments follow the schema even where the model decides to call.")
    allowed_callers: list[str] | None = ignored()
    defer_loading: bool | None = ignored()
    output_schema: dict[str, Any] | None = ignored()
    async_: bool | None = Field(None, alias="async", description="Accepted for compatibility, without effect.")

    def as_tool(self) -> Tool:
        return Tool(self.name, self.description, self.parameters, self.strict)

    def told(self) -> dict[str, Any]:
        """As a response repeats it."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", **about, "strict": self.strict}


class AllowedTool(Body):
    type: Annotated[str, AfterValidator(is_function), one_of("function")] = Field(description="Always `function`.")
    name: str = Field(description="One of the names in `tools`.")


class ToolChoice(Body):
    """One function that must be called; or those that may or must be."""

    type: Literal["function", "allowed_tools"] = Field(description="One function, or a choice of some.")
    name: str | None = Field(None, description="The function's; only with `function`.")
    mode: Literal["auto", "required"] | None = Field(None, description="Only with `allowed_tools`.")
    tools: list[AllowedTool] | None = Field(None, description="Only with `allowed_tools`.")

    def check(self) -> None:
        wanted = ("name",) if self.type == "function" else ("mode", "tools")
        for field in ("name", "mode", "tools"):
            path = f"tool_choice.{field}"
            if field in wanted and getattr(self, field) is None:
                raise bad_request(f"Missing required parameter: '{path}'.", path)
            if field not in wanted and getattr(self, field) is not None:
                raise bad_request(f"'{path}' is not allowed with the type '{self.type}'.", path)


def choice_form(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<object>"


AnyToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[ToolChoice, Tag("<object>")],
    Discriminator(choice_form),
]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ResponseStreamOptions(Body):
    include_obfuscation: bool = Field(
        False, description="Pad every delta with random characters, so that its size says little about its text."
    )


class ResponsesRequest(SamplingFields):
    input: Input = Field(description="A text, or the items of the conversation so far.")
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Most tokens of the answer. Default: to the end of the model's context."
    )
    text: TextConfig | None = Field(None, description="The form of the text.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The form of the text: JSON, a regular expression, one of several texts, or a grammar."
    )
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(
        default_factory=list, description="The functions that the model may call."
    )
    tool_choice: AnyToolChoice = Field("auto", description="Whether and what to call, as in a chat.")
    parallel_tool_calls: bool = Field(True, description="Whether the answer may have more than one call.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of this many most likely tokens at each place."
    )
    include: list[Includable] = Field(
        default_factory=list,
        max_length=32,
        description=f"'{LOGPROBS}': the log-probability of each token of the text. The others are without effect.",
    )
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="'auto': leave out the oldest items of an input that is too long for the context."
    )
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16, description="Returned as it is.")
    stream_options: ResponseStreamOptions | None = Field(  # type: ignore[assignment]  # this route has others
        None, description="Only with `stream`."
    )
    n: int = Field(1, ge=1, le=1, description="A response has one answer.")

    store: bool | None = ignored("Accepted for compatibility, without effect: no response is kept.")
    reasoning: dict[str, Any] | None = ignored()
    max_tool_calls: int | None = ignored()
    access_programs: dict[str, Any] | None = ignored()
    image: dict[str, Any] | None = ignored()

    previous_response_id: Stateful = unsupported()
    conversation: Stateful = unsupported()
    prompt: Stateful = unsupported()
    background: Annotated[Any, Only(False)] = unsupported("false")
    background_options: Unsupported = unsupported()
    context_management: Annotated[Any, Only([])] = unsupported("null or []")
    moderation: Unsupported = unsupported()
    prompt_logprobs: Unsupported = unsupported()
    return_token_ids: Annotated[Any, Only(False)] = unsupported("false")

    def check(self) -> None:
        super().check()
        if self.text is not None and self.text.format is not None:
            self.text.format.check()
        if isinstance(self.tool_choice, ToolChoice):
            self.tool_choice.check()
        if isinstance(self.input, list):
            self.check_results(self.input)

    def check_results(self, items: list[InputItem]) -> None:
        """Every call has one result behind it, and every result its call before it. Raises ApiError."""
        waiting: dict[str, int] = {}  # by id, the place of a call without a result
        for index, item in enumerate(items):
            if isinstance(item, CallItem):
                waiting[item.call_id] = index
            elif isinstance(item, ResultItem) and waiting.pop(item.call_id, None) is None:
                where = f"input[{index}].call_id"
                name = shorten(item.call_id)
                raise bad_request(
                    f"Invalid '{where}': No call with the id '{name}' waits for this result. {STATELESS}.", where
                )
        for name, index in waiting.items():
            raise bad_request(f"The call '{shorten(name)}' has no result in 'input'.", f"input[{index}]")

    @property
    def items(self) -> list[InputItem]:
        return (
            [MessageItem(type="message", role="user", content=self.input)]
            if isinstance(self.input, str)
            else self.input
        )

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most likely tokens beside the chosen one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in self.include or self.top_logprobs else None

"""The parts of a chat's body that are about calling functions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from leoserve.api.protocol.base import Body, ignored
from leoserve.text.tools import Tool

MAX_TOOLS = 128
MAX_ID = 256  # characters; ours have 29
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]


class FunctionDefinition(Body):
    name: Name = Field(description="Letters, digits, `_` and `-`, at most 64.")
    description: str | None = Field(None, description="What it does, for the model to read.")
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON schema of its arguments, of type object. Default: it has none."
    )
    strict: bool = Field(False, description="Hold the arguments to the schema also when the model calls it by itself.")

    def as_tool(self) -> Tool:
        return Tool(self.name, self.description, self.parameters, self.strict)


class ToolDefinition(Body):
    type: Literal["function"] = Field(description="The one kind of tool that this server knows.")
    function: FunctionDefinition = Field(description="What may be called.")


class FunctionName(Body):
    name: str = Field(description="One of the names in `tools`.")


class NamedChoice(Body):
    """One call of this function."""

    type: Literal["function"] = Field(description="Always `function`.")
    function: FunctionName = Field(description="What is called.")


class AllowedTools(Body):
    mode: Literal["auto", "required"] = Field(description="Whether the answer must be a call.")
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] = Field(
        description="Those of `tools` that may be called."
    )


class AllowedChoice(Body):
    """Some of the functions, while the model is told of all."""

    type: Literal["allowed_tools"] = Field(description="Always `allowed_tools`.")
    allowed_tools: AllowedTools = Field(description="Which, and whether one must be called.")


def kind_of_choice(value: Any) -> str:
    if isinstance(value, dict):
        return "<allowed>" if value.get("type") == "allowed_tools" else "<function>"
    if isinstance(value, Body):
        return "<allowed>" if isinstance(value, AllowedChoice) else "<function>"
    return "<mode>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedChoice, Tag("<function>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(kind_of_choice),
]


FunctionCallChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("<mode>")] | Annotated[FunctionName, Tag("<function>")],
    Discriminator(kind_of_choice),
]


class CalledFunction(Body):
    name: Annotated[str, Field(max_length=MAX_ID)] = Field(description="The function that was called.")
    arguments: str = Field(description="Its arguments, as JSON text.")
    parsed_arguments: Any = ignored("What the SDK adds to a call that it has parsed; accepted, without effect.")

    def for_template(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


class MessageToolCall(Body):
    """A call that the assistant made."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)] = Field(description="What the tool's message repeats.")
    type: Literal["function"] = Field("function", description="Always `function`.")
    function: CalledFunction = Field(description="What was called.")
    index: int | None = Field(None, description="Of streamed calls: accepted, without effect.")

    def for_template(self) -> dict[str, Any]:
        return {"id": self.id, "type": self.type, "function": self.function.for_template()}

"""The fields that say what form an answer must have: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from leoserve.api.protocol.base import Body, SamplingFields

MAX_SOURCE = 1 << 16  # characters of a regular expression or a grammar
MAX_CHOICES = 1024
MAX_CHOICE_LENGTH = 4096  # characters

Text = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE)]
ChoiceText = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_LENGTH)]


class JsonSchema(Body):
    """A named schema. Answers always follow it, `strict` or not."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="A name for the schema; without effect.")
    description: str | None = Field(None, description="Accepted for compatibility, without effect.")
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="The JSON schema that the answer follows. Default: any JSON object."
    )
    strict: bool | None = Field(None, description="Accepted for compatibility: a schema is always followed strictly.")


class ResponseFormat(Body):
    """`text`, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="With the type `json_schema`.")


class StructuredOutputs(Body):
    """Exactly one form, named as vLLM names them."""

    json_schema: dict[str, Any] | Text | None = Field(None, alias="json", description="A JSON schema, or its text.")
    json_object: bool | None = Field(None, description="True: any JSON object.")
    regex: Text | None = Field(None, description="The whole answer matches this regular expression (Rust's syntax).")
    choice: Annotated[list[ChoiceText], Field(min_length=1, max_length=MAX_CHOICES)] | None = Field(
        None, description="The answer is one of these texts."
    )
    grammar: Text | None = Field(
        None, description="A context-free grammar in Lark's notation (llguidance's dialect) or in GBNF (EBNF)."
    )


class StructuredFields(SamplingFields):
    """The fields of an answer whose form can be prescribed."""

    response_format: ResponseFormat | None = Field(
        None, description="The form of the answer: text, a JSON object, or JSON that follows a schema."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The form of the answer: JSON, a regular expression, one of several texts, or a grammar."
    )

"""The rules that all bodies follow, and the fields that chats and completions share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from leoserve.api.errors import bad_request

INT64 = 2**63
MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 256  # characters
MAX_BAD_WORDS_LENGTH = 4096  # characters, all together
MAX_BIASES = 4096
MAX_ALLOWED = 1 << 16  # more than any LeoLM model has tokens
MAX_LOGPROBS = 20
NULL = {"type": "null"}

# Names of the branches of a union; they are no part of a field's name in an error.
BRANCHES = frozenset({"<text>", "<texts>", "<tokens>", "<token lists>", "<parts>", "<mode>", "<function>", "<allowed>"})
BRANCHES |= {"<object>", "<message>", "<call>", "<result>", "<reasoning>"}


class Body(BaseModel):
    """An object of a request. Types are strict, numbers finite, and null means the default.

    Fields that nobody knows are kept aside, for `unknown_fields`.
    """

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )

    @model_validator(mode="before")
    @classmethod
    def null_is_the_default(cls, given: Any) -> Any:
        """Once an object, not once a field: a body may have a hundred thousand fields."""
        if not isinstance(given, dict) or None not in given.values():
            return given
        fields = cls.model_fields
        return {
            name: value
            for name, value in given.items()
            if value is not None or name not in fields or fields[name].is_required()
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Every field with a default may also be null."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, field in schema["properties"].items():
            about = {key: field[key] for key in ("default", "description") if key in field}
            kind = {key: value for key, value in field.items() if key not in about}
            takes_null = not kind or kind == NULL or NULL in kind.get("anyOf", ())
            if name not in schema.get("required", ()) and not takes_null:
                schema["properties"][name] = {"anyOf": [kind, NULL], **about}
        return schema

    def unknown_fields(self, path: str = "") -> Iterator[str]:
        """The paths of all fields that no model has a name for, in this object and in those inside it."""
        for name in self.__pydantic_extra__ or {}:
            yield path + name
        for name in objects_in(type(self)):
            value = getattr(self, name)
            if isinstance(value, Body):
                yield from value.unknown_fields(f"{path}{name}.")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    yield from item.unknown_fields(f"{path}{name}[{index}].")


@cache
def objects_in(model: type[Body]) -> list[str]:
    """The fields of `model` that can hold a `Body` or a list of them."""
    return [name for name, field in model.model_fields.items() if holds_body(field.annotation)]


def holds_body(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Body):
        return True
    return any(holds_body(part) for part in get_args(annotation))


def fault(message: str, code: str = "invalid_value") -> PydanticCustomError:
    """An error of a validator; braces in `message` stand for themselves. `code`: what the client is told beside it."""
    return PydanticCustomError("unacceptable", "{message}", {"message": message, "code": code})


class Only:
    """For a field whose effect this server does not have: only null or a value of `neutral` is taken."""

    def __init__(self, *neutral: bool | list[str]) -> None:
        self.neutral = neutral

    def check(self, value: Any) -> Any:
        if value is None or any(value == allowed and type(value) is type(allowed) for allowed in self.neutral):
            return value
        if not self.neutral:
            raise fault("this server does not support it", "unsupported_parameter")
        accepted = ", ".join(json.dumps(value) for value in self.neutral)
        raise fault(f"this server does not support it; accepted: null, {accepted}", "unsupported_value")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [*map(exactly, self.neutral), NULL]} if self.neutral else dict(NULL)


def exactly(value: bool | list[str]) -> JsonSchemaValue:
    """The JSON schema of one value."""
    if isinstance(value, bool):
        return {"type": "boolean", "const": value}
    items = {"type": "string", "enum": value} if value else {}
    return {"type": "array", "items": items, "minItems": len(value), "maxItems": len(value)}


Unsupported = Annotated[Any, Only()]


def unsupported(accepted: str = "null") -> Any:
    return Field(None, description=f"Not supported: only {accepted} is accepted.")


def ignored(description: str = "Accepted for compatibility, without effect.") -> Any:
    return Field(None, description=description)


def text_or_texts(value: Any) -> str:
    return "<texts>" if isinstance(value, list) else "<text>"


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
AllowedIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED, fail_fast=True)]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("<texts>")],
    Discriminator(text_or_texts),
]


class StreamOptions(Body):
    include_usage: bool = Field(
        False, description="Every chunk has `usage: null`, and one more before the end has the usage of the request."
    )
    include_obfuscation: bool = Field(
        False, description="Pad every chunk with random characters, so that its size says little about its text."
    )
    continuous_usage_stats: bool = Field(False, description="Every chunk has the usage up to it.")


class RequestBody(Body):
    """The whole body of a request."""

    def check(self) -> None:
        """What one field says about another. Raises ApiError."""


class SamplingFields(RequestBody):
    """The fields that chats and completions share."""

    model: str = Field(description="The name of a served model, as /v1/models lists it.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 always takes the most likely token.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the fewest tokens that have this probability together."
    )
    top_k: int = Field(0, ge=-1, lt=2**31, description="Sample from this many most likely tokens; 0 or -1: from all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens less likely than this share of the most likely one's probability."
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Against tokens that were generated already.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="Against tokens by how often they were generated.")
    repetition_penalty: float = Field(
        1.0, ge=0.001, le=100, description="Divides the logits of tokens in prompt and answer; 1 is none."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict,
        max_length=MAX_BIASES,
        description="Token id to what is added to its logit, -100 to 100.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,10}$"}},
    )
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED, fail_fast=True)] | None = (
        Field(None, description="Sample only these tokens.")
    )
    bad_words: list[BadWord] = Field(
        default_factory=list, max_length=MAX_BAD_WORDS, description="Words that the answer must not contain."
    )
    seed: int | None = Field(
        None, ge=-INT64, lt=INT64, description="Equal requests with equal seeds get equal answers. Default: random."
    )
    n: int = Field(1, ge=1, le=1024, description="How many answers, up to the server's limit (128 by default).")
    stop: Stop | None = Field(None, description=f"Up to {MAX_STOPS} texts that end the answer; they are no part of it.")
    stop_token_ids: list[TokenId] = Field(
        default_factory=list, max_length=1024, description="More tokens that end the answer."
    )
    include_stop_str_in_output: bool = Field(False, description="The stop text or token is part of the answer.")
    ignore_eos: bool = Field(False, description="Generate on after the model's end of turn and of text.")
    min_tokens: int = Field(0, ge=0, lt=2**31, description="The answer does not end before it has this many tokens.")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the prompt's tokens and of this many others."
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, lt=2**31, description="Keep only this many tokens of the prompt's end; -1: as many as fit."
    )
    skip_special_tokens: bool = Field(True, description="Leave control tokens out of the text.")
    return_token_ids: bool = Field(
        False,
        description="Also return `prompt_token_ids` and `token_ids`; they and the log-probabilities then include the "
        "token that ended the answer.",
    )
    stream: bool = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="Requests with a lower number are served earlier.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Share cached prompt beginnings only with requests of the same salt."
    )

    user: str | None = ignored()
    metadata: dict[str, Any] | None = ignored()
    store: bool | None = ignored()
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = ignored()
    safety_identifier: str | None = ignored()
    prompt_cache_key: str | None = ignored()
    prompt_cache_options: dict[str, Any] | None = ignored()
    prompt_cache_retention: str | None = ignored()

    guided_json: Unsupported = unsupported()
    guided_regex: Unsupported = unsupported()
    guided_choice: Unsupported = unsupported()
    guided_grammar: Unsupported = unsupported()

    def check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise bad_request("'stream_options' is only allowed when 'stream' is true.", "stream_options")
        if sum(map(len, self.bad_words)) > MAX_BAD_WORDS_LENGTH:
            raise bad_request(
                f"Invalid 'bad_words': At most {MAX_BAD_WORDS_LENGTH} characters, all words together.", "bad_words"
            )
        if self.truncate_prompt_tokens == 0:
            raise bad_request("Invalid 'truncate_prompt_tokens': Should be -1 or at least 1.", "truncate_prompt_tokens")

    @property
    def choices(self) -> int:
        """How many answers to generate for each prompt."""
        return self.n

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

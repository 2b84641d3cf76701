"""What is answered, as far as routes share it: the shapes of the bodies that this server sends, for its description.

No answer is ever built from these models: the routes write theirs directly. Tests hold every answer against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leoserve.api.catalog import ErrorType


class Answer(BaseModel):
    """An object of an answer. It has no other fields than these."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def sometimes(description: str) -> Any:
    """A field that is only there where a request has asked for it."""

    def without_default(schema: dict[str, Any]) -> None:
        schema.pop("default", None)

    return Field(None, description=description, json_schema_extra=without_default)


Count = Annotated[int, Field(ge=0)]
Unix = Annotated[int, Field(ge=0, description="Unix time in seconds.")]
TokenIds = list[Count]
Logprob = Annotated[float, Field(le=0.001, description="-9999.0 stands for what is as good as impossible.")]


class ErrorObject(Answer):
    message: str = Field(description="What is wrong, for people.")
    type: ErrorType = Field(description="Whose fault it is, or for 429 of what there was too much.")
    param: str | None = Field(description="The field of the request that is at fault, as a path.")
    code: str | None = Field(description="What is wrong, for programs.")


class ErrorAnswer(Answer):
    """Whatever goes wrong is told like this; in a stream that has begun, as an event."""

    error: ErrorObject


class Status(Answer):
    status: Literal["ok", "ready"]


class Version(Answer):
    version: str


class ModelCard(Answer):
    id: str = Field(description="The name under which the model is asked for.")
    object: Literal["model"]
    created: Unix
    owned_by: str
    root: str = Field(description="What the model calls itself.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer together; null until it is loaded.")


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(Answer):
    cached_tokens: Count = Field(description="Tokens of the prompt that did not have to be computed.")


class Usage(Answer):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class PromptLogprob(Answer):
    logprob: Logprob
    rank: int = Field(ge=1, description="1 for the most likely token.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class Generated(Answer):
    """What chats and completions have in common."""

    id: str
    created: Unix
    model: str = Field(description="As the request has named it.")
    service_tier: Literal["default"]
    system_fingerprint: str = Field(description="Equal for equal builds that serve the same model in the same way.")


class Tokenization(Answer):
    count: Count
    max_model_len: int | None
    tokens: TokenIds
    token_strs: list[str] | None = Field(description="Null unless `return_token_strs`.")


class Detokenization(Answer):
    prompt: str


class RenderedChat(Answer):
    request_id: str
    model: str
    prompt: str = Field(description="The whole text that the chat becomes.")
    token_ids: TokenIds = Field(description="What the model would read of it.")
    count: Count = Field(description="Of `token_ids`.")
    max_tokens: Count = Field(description="Most tokens that the answer could have.")
    max_model_len: int | None

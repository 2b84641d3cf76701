"""The body of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Discriminator, Field, Tag

from leoserve.api.errors import bad_request
from leoserve.api.protocol.base import MAX_LOGPROBS, TokenId, Unsupported, unsupported
from leoserve.api.protocol.structured import StructuredFields

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16


def prompt_form(value: Any) -> str:
    """Which of the four forms a prompt has, by its first element."""
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else ""
    if isinstance(first, str):
        return "<texts>"
    return "<token lists>" if isinstance(first, list) else "<tokens>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("<texts>")]
    | Annotated[list[TokenId], Field(min_length=1, fail_fast=True), Tag("<tokens>")]
    | Annotated[
        list[Annotated[list[TokenId], Field(fail_fast=True)]],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        Tag("<token lists>"),
    ],
    Discriminator(prompt_form),
]


class CompletionRequest(StructuredFields):
    prompt: Prompt = Field(
        description=f"A text, a list of texts, a list of token ids, or a list of such; up to {MAX_PROMPTS} prompts."
    )
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=0, lt=2**31, description="Most tokens of an answer.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of each token and of this many most likely ones."
    )
    echo: bool = Field(False, description="Return the prompt before the answer, with its log-probabilities if asked.")
    best_of: int | None = Field(
        None, ge=1, le=1024, description="Generate this many answers and return the `n` most likely per token."
    )
    add_special_tokens: bool = Field(True, description="Begin a text with the model's beginning-of-text token.")
    suffix: Unsupported = unsupported()

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of < self.n:
            raise bad_request("'best_of' must be at least 'n'.", "best_of")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise bad_request("'best_of' greater than 'n' cannot be streamed.", "best_of")

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, of whichever form, as a list of texts or of token lists."""
        single = prompt_form(self.prompt) in ("<text>", "<tokens>")
        return cast(Sequence[str | list[int]], [self.prompt] if single else self.prompt)

    @property
    def choices(self) -> int:
        """How many answers to generate for each prompt."""
        return self.best_of or self.n

"""The shapes in which log-probabilities are told: OpenAI's two, and vLLM's for prompts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from leoserve.api.stream import Token
from leoserve.engine.request import TokenLogprobs
from leoserve.text.detokenize import Detokenizer
from leoserve.text.tokenizer import Tokenizer

LEAST = -9999.0  # OpenAI's value for a token that is as good as impossible; JSON has no -Infinity


def finite(logprob: float) -> float:
    """As JSON can tell it: what is below `LEAST`, or no number at all, becomes `LEAST`."""
    return logprob if logprob > LEAST else LEAST


def alternatives(logprobs: TokenLogprobs, count: int) -> Iterator[tuple[int, float]]:
    """The `count` most likely tokens, the most likely first."""
    return zip(logprobs.top_ids[:count], map(finite, logprobs.top_logprobs), strict=False)


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], count: int) -> dict[str, Any]:
    """`choices[].logprobs` of a chat: each token with its bytes and its `count` most likely alternatives."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        data = list(tokenizer.token_bytes(token))
        return {"token": tokenizer.token_text(token), "logprob": finite(logprob), "bytes": data}

    content = [
        told(token.id, token.logprobs.logprob)
        | {"top_logprobs": [told(*other) for other in alternatives(token.logprobs, count)]}
        for token in tokens
        if token.logprobs is not None
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`choices[].logprobs` of a completion, gathered token by token. `top_logprobs` always has the chosen token too."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self.tokenizer = tokenizer
        self.count = count
        self.text_offset: list[int] = []
        self.token_logprobs: list[float | None] = []
        self.tokens: list[str] = []
        self.top_logprobs: list[dict[str, float] | None] = []

    def add(self, token: int, offset: int, logprobs: TokenLogprobs | None) -> None:
        """`offset`: characters of the choice's text before the token. The prompt's first token has no `logprobs`."""
        self.text_offset.append(offset)
        self.tokens.append(self.tokenizer.token_text(token))
        if logprobs is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(finite(logprobs.logprob))
        top = {self.tokenizer.token_text(other): value for other, value in alternatives(logprobs, self.count)}
        top.setdefault(self.tokens[-1], finite(logprobs.logprob))
        self.top_logprobs.append(top)

    def add_prompt(
        self, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs | None], written: str | None = None
    ) -> None:
        """The tokens of an echoed prompt; `logprobs` one a token, None where there is no context to predict it from.

        `written`: the text that it was tokenized from, if that is what the echo shows.
        """
        offsets = prompt_offsets(self.tokenizer, prompt, written)
        for token, offset, its in zip(prompt, offsets, logprobs, strict=True):
            self.add(token, offset, its)

    def add_answer(self, tokens: Sequence[Token], offset: int) -> None:
        """Generated tokens, whose own offsets count from `offset`."""
        for token in tokens:
            self.add(token.id, offset + token.start, token.logprobs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        }


def prompt_offsets(tokenizer: Tokenizer, prompt: Sequence[int], written: str | None) -> Iterator[int]:
    """For each token of a prompt, the characters before it in the echo of the prompt.

    The echo is `written`, where control tokens may be spelled and the spaces that tokenizers add are missing, or else
    the decoded tokens without control tokens.
    """
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces = codecs.getincrementaldecoder("utf-8")(errors=tokenizer.vocabulary.invalid_bytes)
    offset = 0
    for token in prompt:
        yield offset
        special = token in tokenizer.special_ids
        if written is None:
            offset += 0 if special else len(detokenizer.push(token))
            continue
        piece = pieces.decode(tokenizer.token_bytes(token))
        if written.startswith(piece, offset):
            offset += len(piece)
        elif not special:  # else it is a BOS that was added
            offset = min(offset + len(piece) - piece.startswith(" "), len(written))


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs | None], count: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt, by id, itself and its alternatives."""
    told: list[dict[str, Any] | None] = []
    for token, its in zip(prompt, logprobs, strict=True):
        if its is None:
            told.append(None)
            continue
        entries = {
            str(other): {"logprob": value, "rank": rank, "decoded_token": tokenizer.token_text(other)}
            for rank, (other, value) in enumerate(alternatives(its, count), start=1)
        }
        own = {"logprob": finite(its.logprob), "rank": its.rank, "decoded_token": tokenizer.token_text(token)}
        told.append({str(token): own} | entries)
    return told

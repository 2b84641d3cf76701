"""POST /v1/completions"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api.accept import accept
from leoserve.api.answer import send_stream, send_whole
from leoserve.api.context import ServerContext
from leoserve.api.errors import bad_request
from leoserve.api.generation import Generation
from leoserve.api.logprobs import CompletionLogprobs, prompt_logprobs
from leoserve.api.protocol.completions import MAX_PROMPTS, CompletionRequest
from leoserve.api.record import Record
from leoserve.api.sampling import (
    check_carried,
    check_length,
    check_logprobs,
    check_size,
    check_tokens,
    context_length,
    reseeded,
    sampling_params,
    truncated,
)
from leoserve.api.stream import Delta, TextOptions, Token
from leoserve.api.structured import grammar_of
from leoserve.engine.request import Request, SamplingParams


async def create(request: HttpRequest) -> Response:
    """Continue one or many prompts."""
    body, generation = await accept(request, "completions", CompletionRequest, prepare)
    shape = CompletionShape(body, generation)
    if body.stream:
        return await send_stream(request, generation, shape, body.stream_options)
    return await send_whole(request, generation, shape)


def prepare(context: ServerContext, body: CompletionRequest, record: Record, salt: str) -> Generation:
    """Tokenize and check every prompt. Raises ApiError, and ClientGone between two prompts. Runs in a thread."""
    record.id = f"cmpl-{uuid.uuid4().hex}"
    if len(body.prompts) * body.choices > max(MAX_PROMPTS, context.settings.max_choices):
        raise bad_request(f"At most {MAX_PROMPTS} answers to one request: prompts times answers to each.", "prompt")
    shared = parameters(context, body)
    check_carried(shared, len(body.prompts))
    requests = []
    for number, prompt in enumerate(prompt_tokens(context, body)):
        record.check_wanted()
        params = shared if number == 0 or body.seed is not None else reseeded(context, shared)
        requests.append(
            Request(
                request_id=f"{record.id}-{number}",
                prompt=prompt,
                params=params,
                arrival=record.arrival,
                priority=body.priority,
                salt=salt,
            )
        )
    check_logprobs(requests)
    options = TextOptions(
        stop=body.stop_strings,
        include_stop=body.include_stop_str_in_output,
        skip_special=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        logprobs=body.logprobs,
        token_ids=body.return_token_ids,
    )
    return Generation(context, record, requests, options)


def prompt_tokens(context: ServerContext, body: CompletionRequest) -> Iterator[list[int]]:
    """The tokens of each prompt. A text is read as the model's raw input, where control tokens may be written; token
    ids are taken as they are. Raises ApiError."""
    tokenizer = context.tokenizer
    limit = context_length(context)
    for number, prompt in enumerate(body.prompts):
        if isinstance(prompt, str):
            check_size(context, body, [prompt], "prompt")
            tokens = tokenizer.encode(prompt, add_bos=body.add_special_tokens, control_tokens=True)
        else:
            check_tokens(tokenizer, prompt, "prompt")
            tokens = prompt
        if not tokens and tokenizer.bos_id is not None:
            tokens = [tokenizer.bos_id]
        tokens = truncated(tokens, body, limit - body.max_tokens, tokenizer.bos_id)
        if not tokens:
            raise bad_request(f"Prompt {number} is empty, and the model has no token to begin with.", "prompt")
        check_length(len(tokens), body.max_tokens, limit, "prompt")
        yield tokens


def parameters(context: ServerContext, body: CompletionRequest) -> SamplingParams:
    """Those of the first prompt; the others' differ at most in the seed.

    `best_of` needs the log-probabilities of the answers it ranks, and an echo those of the prompt it tells.
    """
    ranked = body.choices > body.n
    echoed = body.logprobs if body.echo else None
    wanted = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    return sampling_params(
        context,
        body,
        max_tokens=body.max_tokens,
        choices=body.choices,
        logprobs=0 if ranked and body.logprobs is None else body.logprobs,
        prompt_logprobs=max(wanted, default=None),
        grammar=grammar_of(body),
    )


class CompletionShape:
    """Tells answers as `text_completion`, whole or in chunks. Choice j of prompt i has the index i * n + j."""

    def __init__(self, body: CompletionRequest, generation: Generation) -> None:
        self.body = body
        self.generation = generation
        self.tokenizer = generation.context.tokenizer
        self.head = {
            "id": generation.record.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "service_tier": "default",
            "system_fingerprint": generation.context.fingerprint(),
        }
        self.texts = [""] * len(generation.choices)
        self.tokens: list[list[Token]] = [[] for _ in generation.choices]
        self.finishes: list[str | None] = [None] * len(generation.choices)
        self.plain = body.logprobs is None and not body.return_token_ids
        self.held: list[Delta] = []  # until the log-probabilities of the prompt that they echo are there

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The echoed prompt, if wanted; text with its tokens; the end."""
        if self.body.echo and self.body.logprobs is not None and not self._scored(delta.index):
            self.held.append(delta)
            return
        ready = [held for held in self.held if self._scored(held.index)]
        self.held = [held for held in self.held if not self._scored(held.index)]
        for each in (*ready, delta):
            yield from self._chunks(each)

    def usage_chunk(self) -> dict[str, Any]:
        return {**self.head, "choices": []}

    def add(self, delta: Delta) -> None:
        self.texts[delta.index] += delta.text
        self.tokens[delta.index] += delta.tokens
        self.finishes[delta.index] = delta.finish

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, generated in enumerate(self._best()):
            prompt = generated // self.body.choices
            echo = self._echo(prompt)
            tokens = self.tokens[generated]
            logprobs = None
            if self.body.logprobs is not None:
                told = self._prompt_part(prompt)
                told.add_answer(tokens, len(echo))
                logprobs = told.as_dict()
            choice = {
                "index": index,
                "text": echo + self.texts[generated],
                "logprobs": logprobs,
                "finish_reason": self.finishes[generated],
            }
            if self.body.return_token_ids:
                choice["token_ids"] = [token.id for token in tokens]
            choices.append(choice | self._about_prompt(prompt))
        return {**self.head, "choices": choices, "usage": self.generation.record.usage()}

    def _best(self) -> list[int]:
        """The generated choices to return: of each prompt's, the `n` with the highest mean log-probability."""
        generated, n = self.body.choices, self.body.n
        best: list[int] = []
        for first in range(0, len(self.generation.choices), generated):
            ranked = list(range(first, first + generated))
            if generated > n:
                ranked.sort(key=lambda number: self.generation.choices[number].mean_logprob, reverse=True)
            best += ranked[:n]
        return best

    def _chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        prompt = delta.index // self.body.choices
        echo = self._echo(prompt)
        if delta.first and (echo or self.body.return_token_ids or self.body.prompt_logprobs is not None):
            logprobs = self._prompt_part(prompt).as_dict() if self.body.logprobs is not None else None
            chunk = self._chunk(delta.index, echo, logprobs)
            chunk["choices"][0] |= self._about_prompt(prompt)
            if self.body.return_token_ids:
                chunk["choices"][0]["token_ids"] = []
            yield chunk
        if delta.text or delta.tokens:
            logprobs = None
            if self.body.logprobs is not None:
                told = CompletionLogprobs(self.tokenizer, self.body.logprobs)
                told.add_answer(delta.tokens, len(echo))
                logprobs = told.as_dict()
            chunk = self._chunk(delta.index, delta.text, logprobs)
            if self.body.return_token_ids:
                chunk["choices"][0]["token_ids"] = [token.id for token in delta.tokens]
            yield chunk
        if delta.finish is not None:
            yield self._chunk(delta.index, "", None, delta.finish)

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "choices": [choice]}

    def _scored(self, index: int) -> bool:
        return index // self.body.choices in self.generation.prompt_logprobs

    def _echo(self, prompt: int) -> str:
        """The text of the echoed prompt, as the client wrote it."""
        if not self.body.echo:
            return ""
        written = self._written(prompt)
        return self.tokenizer.decode(self.generation.requests[prompt].prompt) if written is None else written

    def _written(self, prompt: int) -> str | None:
        """The text that the client wrote as this prompt, if it did and all of it was read."""
        given = self.body.prompts[prompt]
        return given if isinstance(given, str) and self.body.truncate_prompt_tokens is None else None

    def _prompt_part(self, prompt: int) -> CompletionLogprobs:
        """The log-probabilities of the echoed prompt; none without an echo."""
        told = CompletionLogprobs(self.tokenizer, self.body.logprobs or 0)
        if self.body.echo:
            tokens = self.generation.requests[prompt].prompt
            told.add_prompt(tokens, self.generation.prompt_logprobs[prompt], self._written(prompt))
        return told

    def _about_prompt(self, prompt: int) -> dict[str, Any]:
        """The fields of a choice that tell of its prompt, as far as they were asked for."""
        about: dict[str, Any] = {}
        tokens = self.generation.requests[prompt].prompt
        if self.body.return_token_ids:
            about["prompt_token_ids"] = tokens
        if self.body.prompt_logprobs is not None:
            told = self.generation.prompt_logprobs[prompt]
            about["prompt_logprobs"] = prompt_logprobs(self.tokenizer, tokens, told, self.body.prompt_logprobs)
        return about

"""POST /v1/chat/completions"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api.answer import begin, cache_salt, check_servable, send_stream, send_whole
from leoserve.api.context import ServerContext, context_of
from leoserve.api.errors import bad_request
from leoserve.api.generation import Generation, unless_gone
from leoserve.api.logprobs import chat_logprobs, prompt_logprobs
from leoserve.api.protocol.body import read_body
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.record import Record
from leoserve.api.sampling import check_length, check_logprobs, check_size, context_length, sampling_params, truncated
from leoserve.api.stream import Delta, TextOptions, Token
from leoserve.engine.request import Request
from leoserve.text.template import RenderedPrompt, TemplateError


async def create(request: HttpRequest) -> Response:
    """Answer a chat."""
    context = context_of(request)
    record = begin(request, "chat.completions")
    with context.admission.place() as hold:
        body = await read_body(request, ChatRequest, hold)
        record.model = body.model
        check_servable(context, body, body.n)
        salt = cache_salt(request, body)
        generation = await unless_gone(request, context.threads.run(prepare, context, body, record, salt))
    shape = ChatShape(body, generation)
    if body.stream:
        return await send_stream(request, generation, shape, body.stream_options)
    return await send_whole(request, generation, shape)


def prepare(context: ServerContext, body: ChatRequest, record: Record, salt: str) -> Generation:
    """Render, tokenize and check against the context's length. Raises ApiError, and ClientGone between two of these.
    Runs in a thread."""
    record.check_wanted()
    record.id = f"chatcmpl-{uuid.uuid4().hex}"
    limit = context_length(context)
    check_size(context, body, (message.text() for message in body.messages), "messages")
    rendered = render(context, body)
    record.check_wanted()
    prompt = context.tokenizer.encode_prompt(rendered)
    prompt = truncated(prompt, body, limit - (body.max_answer or 1), context.tokenizer.bos_id)
    max_tokens = check_length(len(prompt), body.max_answer, limit, "messages")
    params = sampling_params(
        context,
        body,
        max_tokens=max_tokens,
        choices=body.n,
        logprobs=body.wanted_logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )
    options = TextOptions(
        stop=body.stop_strings,
        include_stop=body.include_stop_str_in_output,
        skip_special=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        logprobs=body.wanted_logprobs,
        token_ids=body.return_token_ids,
    )
    request = Request(
        request_id=record.id, prompt=prompt, params=params, arrival=record.arrival, priority=body.priority, salt=salt
    )
    check_logprobs([request])
    return Generation(context, record, [request], options)


def render(context: ServerContext, body: ChatRequest) -> RenderedPrompt:
    """The chat as the template writes it. Raises ApiError."""
    template = context.template
    for name in body.chat_template_kwargs:
        if name not in template.variables:
            known = ", ".join(sorted(template.variables)) or "none"
            message = f"Invalid 'chat_template_kwargs': The chat template has no such variable; it knows: {known}."
            raise bad_request(message, "chat_template_kwargs")
    add_prompt = body.add_generation_prompt
    try:
        return template.render(
            [message.for_template() for message in body.messages],
            add_generation_prompt=not body.continue_final_message if add_prompt is None else add_prompt,
            continue_final_message=body.continue_final_message,
            extra=body.chat_template_kwargs,
        )
    except TemplateError as error:
        raise bad_request(f"The chat cannot be rendered: {error}", "messages") from None


class ChatShape:
    """Tells an answer as `chat.completion`, or as `chat.completion.chunk`s."""

    def __init__(self, body: ChatRequest, generation: Generation) -> None:
        self.body = body
        self.generation = generation
        self.tokenizer = generation.context.tokenizer
        self.head = {
            "id": generation.record.id,
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": body.model,
            "service_tier": "default",
            "system_fingerprint": generation.context.fingerprint(),
        }
        self.texts = [""] * len(generation.choices)
        self.tokens: list[list[Token]] = [[] for _ in generation.choices]
        self.finishes: list[str | None] = [None] * len(generation.choices)

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The role; text with its tokens; the end."""
        if delta.first:
            chunk = self._chunk(delta.index, {"role": "assistant", "content": ""})
            if delta.index == 0:
                chunk |= self._about_prompt()
            yield chunk
        if delta.text or delta.tokens:
            chunk = self._chunk(delta.index, {"content": delta.text})
            chunk["choices"][0] |= self._about_tokens(delta.tokens)
            yield chunk
        if delta.finish is not None:
            yield self._chunk(delta.index, {}, delta.finish)

    def usage_chunk(self) -> dict[str, Any]:
        return {**self.head, "choices": []}

    def add(self, delta: Delta) -> None:
        self.texts[delta.index] += delta.text
        self.tokens[delta.index] += delta.tokens
        self.finishes[delta.index] = delta.finish

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                **({"logprobs": None} | self._about_tokens(self.tokens[index])),
                "finish_reason": self.finishes[index],
            }
            for index, text in enumerate(self.texts)
        ]
        return {**self.head, "choices": choices, "usage": self.generation.record.usage(), **self._about_prompt()}

    def _chunk(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self.head, "choices": [choice]}

    def _about_tokens(self, tokens: list[Token]) -> dict[str, Any]:
        """The fields of a choice that tell of single tokens, as far as they were asked for."""
        about: dict[str, Any] = {}
        if self.body.wanted_logprobs is not None:
            about["logprobs"] = chat_logprobs(self.tokenizer, tokens, self.body.wanted_logprobs)
        if self.body.return_token_ids:
            about["token_ids"] = [token.id for token in tokens]
        return about

    def _about_prompt(self) -> dict[str, Any]:
        """The fields of a response that tell of the prompt, as far as they were asked for."""
        about: dict[str, Any] = {}
        prompt = self.generation.requests[0].prompt
        if self.body.return_token_ids:
            about["prompt_token_ids"] = prompt
        if self.body.prompt_logprobs is not None:
            told = self.generation.prompt_logprobs[0]
            about["prompt_logprobs"] = prompt_logprobs(self.tokenizer, prompt, told, self.body.prompt_logprobs)
        return about

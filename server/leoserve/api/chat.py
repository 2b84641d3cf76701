"""POST /v1/chat/completions"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api.accept import accept
from leoserve.api.answer import send_stream, send_whole
from leoserve.api.context import ServerContext
from leoserve.api.errors import bad_request
from leoserve.api.generation import Generation
from leoserve.api.logprobs import chat_logprobs, prompt_logprobs
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.record import Record
from leoserve.api.sampling import check_length, check_logprobs, check_size, context_length, sampling_params, truncated
from leoserve.api.stream import Delta, TextOptions, Token
from leoserve.api.structured import grammar_of
from leoserve.api.tools import call_id, finish_reason, grammar_for, render_chat, told_texts
from leoserve.engine.request import Request
from leoserve.text.calls import CallPiece
from leoserve.text.template import RenderedPrompt, TemplateError


async def create(request: HttpRequest) -> Response:
    """Answer a chat."""
    body, generation = await accept(request, "chat.completions", ChatRequest, prepare)
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
    said = (text for message in body.messages for text in message.texts())
    check_size(context, body, chain(said, told_texts(body.calling)), "messages")
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
        grammar=grammar_for(body.calling, grammar_of(body), "functions" if body.functions else "tools"),
    )
    options = TextOptions(
        stop=body.stop_strings,
        include_stop=body.include_stop_str_in_output,
        skip_special=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        logprobs=body.wanted_logprobs,
        token_ids=body.return_token_ids,
        calling=body.calling,
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
        return render_chat(
            template,
            [message.in_newer_form() for message in body.messages],
            body.calling,
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
        self.plain = body.wanted_logprobs is None and not body.return_token_ids
        self.texts = [""] * len(generation.choices)
        self.calls: list[list[dict[str, Any]]] = [[] for _ in generation.choices]
        self.tokens: list[list[Token]] = [[] for _ in generation.choices]
        self.finishes: list[str | None] = [None] * len(generation.choices)

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The role; text or more of a call, with the tokens it came from; the end.

        Where there may be calls, the content begins as null, which it stays when nothing but calls is said.
        """
        if delta.first:
            chunk = self._chunk(
                delta.index, {"role": "assistant", "content": "" if self.body.calling is None else None}
            )
            if delta.index == 0:
                chunk |= self._about_prompt()
            yield chunk
        parts = [{"content": delta.text}] if delta.text else []
        parts += self._call_deltas(delta)
        if delta.tokens and not parts:
            parts.append({"content": ""} if self.body.calling is None else {})
        tokens = delta.tokens
        for part in parts:
            chunk = self._chunk(delta.index, part)
            chunk["choices"][0] |= self._about_tokens(tokens)
            tokens = []
            yield chunk
        if delta.finish is not None:
            yield self._chunk(delta.index, {}, self._finish(delta))

    def _call_deltas(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """What is new of each call."""
        for index, group in groupby(delta.calls, key=lambda piece: piece.index):
            pieces = list(group)
            function: dict[str, str] = {"arguments": "".join(piece.arguments for piece in pieces)}
            name = pieces[0].name
            if name is not None:
                function = {"name": name} | function
            elif not function["arguments"] and not delta.tokens:
                continue
            if self.body.functions:
                yield {"function_call": function}
            elif name is None:
                yield {"tool_calls": [{"index": index, "function": function}]}
            else:
                yield {"tool_calls": [{"index": index, "id": call_id(), "type": "function", "function": function}]}

    def _finish(self, delta: Delta) -> str | None:
        calls = self.generation.choices[delta.index].calls
        reason = finish_reason(delta.finish, calls, self.body.calling)
        return "function_call" if reason == "tool_calls" and self.body.functions else reason

    def usage_chunk(self) -> dict[str, Any]:
        return {**self.head, "choices": []}

    def add(self, delta: Delta) -> None:
        self.texts[delta.index] += delta.text
        self.tokens[delta.index] += delta.tokens
        self.finishes[delta.index] = self._finish(delta)
        for piece in delta.calls:
            add_piece(self.calls[delta.index], piece)

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": self._message(text, self.calls[index]),
                **({"logprobs": None} | self._about_tokens(self.tokens[index])),
                "finish_reason": self.finishes[index],
            }
            for index, text in enumerate(self.texts)
        ]
        return {**self.head, "choices": choices, "usage": self.generation.record.usage(), **self._about_prompt()}

    def _message(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message |= {"function_call": calls[0]["function"]} if self.body.functions else {"tool_calls": calls}
        return message

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
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


def add_piece(calls: list[dict[str, Any]], piece: CallPiece) -> None:
    """Put more of a call to the calls of a whole message."""
    if piece.name is not None:
        calls.append({"id": call_id(), "type": "function", "function": {"name": piece.name, "arguments": ""}})
    calls[piece.index]["function"]["arguments"] += piece.arguments

"""POST /v1/responses: OpenAI's newer way to ask. Nothing is kept between requests."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api.accept import accept
from leoserve.api.answer import send_events, send_whole
from leoserve.api.context import ServerContext
from leoserve.api.errors import ApiError, bad_request, shorten
from leoserve.api.generation import Generation
from leoserve.api.protocol.responses import (
    STATELESS,
    CallItem,
    MessageItem,
    ResponsesRequest,
    ResultItem,
    ToolChoice,
    plain,
)
from leoserve.api.record import Record
from leoserve.api.responsestream import ResponseShape, events
from leoserve.api.sampling import check_length, check_logprobs, check_size, context_length, sampling_params, truncated
from leoserve.api.stream import TextOptions
from leoserve.api.structured import ANY_OBJECT, of_schema, of_structured_outputs
from leoserve.api.tools import calling_of, check_tools, grammar_for, render_chat, told_texts
from leoserve.engine.request import Grammar, Request
from leoserve.text.template import TemplateError
from leoserve.text.tools import Calling

Message = dict[str, Any]  # of a chat, as OpenAI has it, with a string as content
TOO_LONG = "context_length_exceeded"


async def create(request: HttpRequest) -> Response:
    """Answer a conversation with a response."""
    body, generation = await accept(request, "responses", ResponsesRequest, prepare)
    shape = ResponseShape(body, generation)
    if body.stream:
        return await send_events(request, generation, partial(events, shape))
    return await send_whole(request, generation, shape)


async def not_kept(request: HttpRequest, response: str) -> Response:
    """No response is ever found: this server keeps none."""
    raise ApiError(404, f"Response with id '{shorten(response)}' not found. {STATELESS}.")


def prepare(context: ServerContext, body: ResponsesRequest, record: Record, salt: str) -> Generation:
    """Render, tokenize and check against the context's length. Raises ApiError, and ClientGone between two of these.
    Runs in a thread."""
    record.check_wanted()
    record.id = f"resp_{uuid.uuid4().hex}"
    calling = calling_for(body)
    prompt = Prompt(context, body, calling, record).tokens()
    max_tokens = check_length(len(prompt), body.max_output_tokens, context_length(context), "input")
    params = sampling_params(
        context,
        body,
        max_tokens=max_tokens,
        choices=1,
        logprobs=body.wanted_logprobs,
        prompt_logprobs=None,
        grammar=grammar_for(calling, text_grammar(body)),
    )
    options = TextOptions(
        stop=body.stop_strings,
        include_stop=body.include_stop_str_in_output,
        skip_special=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        logprobs=body.wanted_logprobs,
        calling=calling,
    )
    request = Request(
        request_id=record.id, prompt=prompt, params=params, arrival=record.arrival, priority=body.priority, salt=salt
    )
    check_logprobs([request])
    return Generation(context, record, [request], options)


def calling_for(body: ResponsesRequest) -> Calling | None:
    """How the answer may call functions; None when it may not. Raises ApiError."""
    tools = [tool.as_tool() for tool in body.tools]
    check_tools(tools, "tools[{}]")
    choice = body.tool_choice
    parallel = body.parallel_tool_calls
    if isinstance(choice, ToolChoice):
        if choice.type == "function":
            return calling_of(tools, named=choice.name, parallel=parallel)
        allowed = [tool.name for tool in choice.tools or ()]
        return calling_of(tools, choice.mode or "auto", allowed=allowed, parallel=parallel)
    if choice == "required":
        if not tools:
            raise bad_request("'tool_choice' is only allowed with 'tools'.", "tool_choice")
        return calling_of(tools, "required", parallel=parallel)
    return calling_of(tools, parallel=parallel) if tools and choice == "auto" else None


def text_grammar(body: ResponsesRequest) -> Grammar | None:
    """What the text of the answer must be. Raises ApiError."""
    form = body.text.format if body.text is not None else None
    structured = of_structured_outputs(body.structured_outputs)
    if form is None or form.type == "text":
        return structured
    if structured is not None:
        raise bad_request("'structured_outputs' and 'text.format' exclude each other.", "structured_outputs")
    if form.type == "json_object":
        return of_schema(ANY_OBJECT, "text.format")
    return of_schema(form.schema_ or ANY_OBJECT, "text.format.schema")


class Prompt:
    """The prompt that a conversation becomes."""

    def __init__(self, context: ServerContext, body: ResponsesRequest, calling: Calling | None, record: Record) -> None:
        self.context = context
        self.body = body
        self.calling = calling
        self.record = record
        self.room = context_length(context) - (body.max_output_tokens or 1)
        messages = messages_of(body)
        heads = next((place for place, one in enumerate(messages) if one["role"] != "system"), len(messages))
        self.head, self.rest = messages[:heads], messages[heads:]

    def tokens(self) -> list[int]:
        """Of the whole conversation, or of what `truncation` leaves of it. Raises ApiError, and ClientGone."""
        first = self._first_kept() if self.body.truncation == "auto" else 0
        tokens = self._tokens(self.rest[first:])
        return truncated(tokens, self.body, self.room, self.context.tokenizer.bos_id)

    def _first_kept(self) -> int:
        """The first message behind the system's with which the prompt fits; the last one if none does. No result stands
        without its call."""
        begins = [place for place, message in enumerate(self.rest) if message["role"] != "tool"]
        if len(begins) < 2 or self._fits(0):
            return 0
        return begins[1 + bisect_left(begins[1:-1], True, key=self._fits)]

    def _fits(self, first: int) -> bool:
        try:
            return len(self._tokens(self.rest[first:])) <= self.room
        except ApiError as error:
            if error.code == TOO_LONG:
                return False
            raise

    def _tokens(self, rest: Sequence[Message]) -> list[int]:
        self.record.check_wanted()
        messages = [*self.head, *rest]
        check_size(self.context, self.body, [*texts_of(messages), *told_texts(self.calling)], "input")
        try:
            rendered = render_chat(
                self.context.template,
                messages,
                self.calling,
                add_generation_prompt=True,
                continue_final_message=False,
                extra={},
            )
        except TemplateError as error:
            raise bad_request(f"The input cannot be rendered: {error}", "input") from None
        self.record.check_wanted()
        return self.context.tokenizer.encode_prompt(rendered)


def messages_of(body: ResponsesRequest) -> list[Message]:
    """The conversation as a chat's messages: calls belong to the message of the assistant that they follow."""
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    for item in body.items:
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": plain(item.content)})
        elif isinstance(item, CallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, ResultItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": plain(item.output)})
    return messages


def texts_of(messages: Sequence[Message]) -> Iterator[str]:
    """All that a prompt has of the client's own text."""
    for message in messages:
        yield message["content"]
        for call in message.get("tool_calls", ()):
            yield call["function"]["arguments"]

"""How an answer is told as a response: items that grow event by event, and the response that they make up."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
from pydantic import BaseModel

from leoserve.api.answer import failure, frame, padded
from leoserve.api.errors import ApiError
from leoserve.api.generation import Generation
from leoserve.api.logprobs import chat_logprobs
from leoserve.api.protocol.responses import ResponsesRequest
from leoserve.api.stream import Delta, Finish
from leoserve.api.tools import call_id
from leoserve.text.calls import CallPiece

Event = dict[str, Any]


class Message:
    """The text of an answer as an item of a response."""

    def __init__(self, place: int) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self.place = {"item_id": self.id, "output_index": place, "content_index": 0}
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": "".join(self.texts), "annotations": [], "logprobs": self.logprobs}

    def item(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        content = [] if empty else [self.part()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def begin(self) -> Iterator[Event]:
        item = self.item("in_progress", empty=True)
        yield {"type": "response.output_item.added", "output_index": self.place["output_index"], "item": item}
        yield {"type": "response.content_part.added", **self.place, "part": self.part()}

    def more(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        self.texts.append(text)
        self.logprobs += logprobs
        yield {"type": "response.output_text.delta", **self.place, "delta": text, "logprobs": logprobs}

    def end(self, status: str) -> Iterator[Event]:
        part = self.part()
        told = {"text": part["text"], "logprobs": self.logprobs}
        yield {"type": "response.output_text.done", **self.place, **told}
        yield {"type": "response.content_part.done", **self.place, "part": part}
        item = self.item(status)
        yield {"type": "response.output_item.done", "output_index": self.place["output_index"], "item": item}


class Call:
    """A call of a function as an item of a response."""

    def __init__(self, place: int, name: str) -> None:
        self.id = f"fc_{uuid.uuid4().hex}"
        self.call_id = call_id()
        self.name = name
        self.place = {"item_id": self.id, "output_index": place}
        self.arguments: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        arguments = "".join(self.arguments)
        about = {"call_id": self.call_id, "name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function_call", "status": status, **about}

    def begin(self) -> Iterator[Event]:
        item = self.item("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.place["output_index"], "item": item}

    def more(self, arguments: str) -> Iterator[Event]:
        self.arguments.append(arguments)
        yield {"type": "response.function_call_arguments.delta", **self.place, "delta": arguments}

    def end(self, status: str) -> Iterator[Event]:
        item = self.item(status)
        about = {"name": self.name, "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **self.place, **about}
        yield {"type": "response.output_item.done", "output_index": self.place["output_index"], "item": item}


class ResponseShape:
    """Tells an answer as a `response`, or as the events in which it comes about: it is the same told twice."""

    def __init__(self, body: ResponsesRequest, generation: Generation) -> None:
        self.body = body
        self.generation = generation
        self.created = int(time.time())
        self.done: list[dict[str, Any]] = []  # items
        self.open: Message | Call | None = None
        self.calls = 0  # that have begun
        self.finish: Finish | None = None

    def opening(self) -> Iterator[Event]:
        for name in ("created", "in_progress"):
            yield {"type": f"response.{name}", "response": self.response("in_progress")}

    def tell(self, delta: Delta) -> Iterator[Event]:
        """The events of what `delta` adds. One delta's text stands before the calls that begin in it, and behind what
        it adds to a call that has begun."""
        going_on = [piece for piece in delta.calls if piece.index < self.calls]
        for piece in going_on:
            yield from self._call(piece)
        if delta.text or (delta.tokens and not delta.calls and isinstance(self.open, Message)):
            yield from self._text(delta)
        for piece in delta.calls[len(going_on) :]:
            yield from self._call(piece)
        if delta.finish is not None:
            yield from self._end(delta.finish)

    def failed(self, error: ApiError) -> Iterator[Event]:
        """The end of an answer that cannot be finished. The SDKs look for `error` in the event, OpenAI's description
        has its fields beside the type: here are both."""
        told = error.body()["error"]
        beside = {key: told[key] for key in ("code", "message", "param")}
        yield {"type": "error", **beside, "error": told}
        yield {"type": "response.failed", "response": self.response("failed", error)}

    def add(self, delta: Delta) -> None:
        for _ in self.tell(delta):
            pass

    def whole(self) -> dict[str, Any]:
        return self.response("incomplete" if self.finish == "length" else "completed")

    def _text(self, delta: Delta) -> Iterator[Event]:
        if not isinstance(self.open, Message):
            yield from self._close("completed")
            self.open = Message(len(self.done))
            yield from self.open.begin()
        logprobs: list[dict[str, Any]] = []
        if self.body.wanted_logprobs is not None:
            tokenizer = self.generation.context.tokenizer
            logprobs = chat_logprobs(tokenizer, delta.tokens, self.body.wanted_logprobs)["content"]
        yield from self.open.more(delta.text, logprobs)

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            yield from self._close("completed")
            self.open = Call(len(self.done), piece.name)
            self.calls = piece.index + 1
            yield from self.open.begin()
        if not isinstance(self.open, Call):
            raise RuntimeError(f"more of call {piece.index}, which is complete")
        if piece.arguments:
            yield from self.open.more(piece.arguments)
        if piece.complete:
            yield from self._close("completed")

    def _close(self, status: str) -> Iterator[Event]:
        """The end of the item that is open, if one is."""
        if self.open is not None:
            yield from self.open.end(status)
            self.done.append(self.open.item(status))
            self.open = None

    def _end(self, finish: Finish) -> Iterator[Event]:
        self.finish = finish
        if self.open is None and not self.done:  # an answer without a word is a message, too
            self.open = Message(0)
            yield from self.open.begin()
        yield from self._close("incomplete" if finish == "length" else "completed")
        whole = self.whole()
        yield {"type": f"response.{whole['status']}", "response": whole}

    def response(self, status: str, error: ApiError | None = None) -> dict[str, Any]:
        """The response up to now. `status`: OpenAI's."""
        body = self.body
        return {
            "id": self.generation.record.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None if error is None else {"code": error_code(error), "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": body.model,
            "output": self.done,
            "usage": None if status == "in_progress" else self.usage(),
            **settings_of(body),
            "service_tier": "default",
        }

    def usage(self) -> dict[str, Any]:
        """Reasoning is not told apart from the answer, and nothing is charged for writing to the cache."""
        record = self.generation.record
        return {
            "input_tokens": record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": record.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": record.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": record.prompt_tokens + record.generated_tokens,
        }


def settings_of(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, with the defaults that it had."""

    def given(part: BaseModel) -> dict[str, Any]:
        return part.model_dump(mode="json", by_alias=True, exclude_unset=True)

    text = given(body.text) if body.text is not None else {}
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "background": False,
        "reasoning": body.reasoning or {"effort": None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": {"type": "text"}} | text,
        "tools": [tool.told() for tool in body.tools],
        "tool_choice": choice if isinstance(choice, str) else given(choice),
        "truncation": body.truncation,
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }


def error_code(error: ApiError) -> str:
    """One of the codes that OpenAI's description has for a response that failed."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"


async def events(
    shape: ResponseShape, first: Delta, deltas: AsyncGenerator[Delta, None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of the events, those of one delta together. The last one tells how the response ended; there is no
    [DONE]."""
    options = shape.body.stream_options
    frames = Frames(obfuscated=options is not None and options.include_obfuscation)
    try:
        async with aclosing(deltas):
            yield frames.of(shape.opening()) + frames.of(shape.tell(first))
            async for delta in deltas:
                if told := frames.of(shape.tell(delta)):
                    yield told
    except Exception as error:
        yield frames.of(shape.failed(failure(error, shape.generation.record)))


class Frames:
    """Numbers the events of one stream. `obfuscated`: deltas are padded to sizes that say little."""

    def __init__(self, *, obfuscated: bool) -> None:
        self.obfuscated = obfuscated
        self.count = 0

    def of(self, events: Iterable[Event]) -> bytes:
        return b"".join([self.frame(event) for event in events])

    def frame(self, event: Event) -> bytes:
        data = msgspec.json.encode({**event, "sequence_number": self.count})
        self.count += 1
        kind = str(event["type"])
        if self.obfuscated and kind.endswith(".delta"):
            data = padded(data)
        return b"event: " + kind.encode() + b"\n" + frame(data)

"""What servers answer, decoded as far as a load tester looks."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct


class PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Said(Struct, gc=False):
    """A message, or what an event adds to one. Whatever it consists of, it took tokens."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    @property
    def anything(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class Choice(Struct, gc=False):
    """Of a chat or of a completion, streamed or whole."""

    text: str | None = None
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None

    @property
    def anything(self) -> bool:
        said = self.delta or self.message
        return bool(self.text) or (said is not None and said.anything)

    @property
    def words(self) -> str:
        """The text that a conversation goes on with."""
        said = self.delta or self.message
        return self.text or (said.content if said is not None else None) or ""


class Answer(Struct, gc=False):
    """A body, or one event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


DONE = b"[DONE]"
decode = msgspec.json.Decoder(Answer).decode


class EventLines:
    """Takes a stream's bytes as they come and gives its events' data, which is one line each in OpenAI's API."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of all events whose line is now complete."""
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def complaint(body: bytes) -> str:
    """A failed request's own words: OpenAI's error message where there is one, or the body's beginning."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
    if isinstance(content, dict):
        return said_of(content.get("error", content))
    return str(content)[:200]


def said_of(error: Any) -> str:
    """The message of an error object."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]

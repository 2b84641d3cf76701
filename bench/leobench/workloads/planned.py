"""A request before it is sent: what it asks, how long it is, and what it shares with others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from msgspec import Struct

Message = dict[str, Any]
Prompt = str | list[int] | list[Message]


class Planned(Struct, frozen=True):
    """One request of a workload.

    prompt: text, token ids, or messages. Of a conversation's later turn only what is new: the whole prompt is what was
        said before, answers included, and this
    prompt_tokens: of the whole prompt; exact for token ids, otherwise an estimate, None where there is none
    output_tokens: the most to ask for; exactly these, where the server is told to ignore the end
    arrival: seconds from the trace's beginning, for a trace
    after: seconds from the end of the session's turn before to this one: the user thinks
    prefix: what the prompt begins with that other requests may begin with, too: segments of (name, tokens), in order.
        Equal names are equal text; `answer_name` names what a conversation's turn was answered. The rest of the prompt,
        if that is not all of it, is its own.
    """

    index: int
    group: str
    prompt: Prompt
    prompt_tokens: int | None
    output_tokens: int
    session: int | None = None
    turn: int | None = None
    arrival: float | None = None
    after: float = 0.0
    prefix: tuple[tuple[str, int], ...] = ()


def answer_name(session: int, turn: int) -> str:
    """The segment that the answer to a conversation's turn is in the prompts of its later turns."""
    return f"conversation/{session}/{turn}/answer"


class Workload(Protocol):
    """Where requests come from. The same options and seed give the same requests."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that the requests depend on, for the result's file; the seed with it."""

    def requests(self) -> Iterator[Planned]:
        """Requests, a session's turns one after the other; without end unless a trace ends."""


def sessions(requests: Iterable[Planned]) -> Iterator[list[Planned]]:
    """The requests by what comes to the server as one: a conversation's turns, or a request by itself."""
    turns: list[Planned] = []
    for planned in requests:
        if turns and (planned.session is None or planned.session != turns[-1].session):
            yield turns
            turns = []
        turns.append(planned)
    if turns:
        yield turns

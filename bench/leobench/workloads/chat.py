"""Chats: single questions, and conversations whose prompts grow by everything that was said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leobench.workloads.bundled import chats
from leobench.workloads.lengths import Lengths
from leobench.workloads.planned import Planned, Prompt, answer_name
from leobench.workloads.synthetic import CHOICES, LENGTHS, TEXTS, Form, sample
from leobench.workloads.words import Words, estimate


def said(text: str, form: Form) -> Prompt:
    """A user's text as a prompt."""
    if form == "none":
        return ""
    return [{"role": "user", "content": text}] if form == "chat" else text


def numbered(seed: int, index: int, text: str) -> str:
    """A text that no other begins like: whether a server's prefix cache knows it is the workload's to say."""
    return f"Anfrage {seed}-{index}: {text}"


def shuffled(seed: int) -> Iterator[int]:
    """The bundled prompts' places in random order, each once before any comes again."""
    generator = sample(seed, CHOICES)
    while True:
        yield from generator.permutation(len(chats())).tolist()


@dataclass(frozen=True, slots=True)
class Chats:
    """The bundled German prompts, one request each, each with a number before it."""

    output_tokens: Lengths
    seed: int
    form: Form
    words: Words
    name: str = "chat"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"name": self.name, "output_tokens": str(self.output_tokens), "seed": self.seed}

    def requests(self) -> Iterator[Planned]:
        lengths = sample(self.seed, LENGTHS)
        for index, place in enumerate(shuffled(self.seed)):
            text = numbered(self.seed, index, chats()[place].prompt)
            answer = self.output_tokens.draw_count(lengths)
            yield Planned(index, "chat", said(text, self.form), estimate(text) + self.words.around, answer)


@dataclass(frozen=True, slots=True)
class Conversations:
    """Several turns with pauses between them. All conversations begin with the same system message.

    input_tokens: of a user's turn; None: the bundled German prompts
    """

    turns: Lengths
    think: Lengths
    system_tokens: int
    input_tokens: Lengths | None
    output_tokens: Lengths
    seed: int
    form: Form
    words: Words
    name: str = "conversations"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "turns": str(self.turns),
            "think_s": str(self.think),
            "system_tokens": self.system_tokens,
            "input_tokens": str(self.input_tokens) if self.input_tokens else "bundled prompts",
            "output_tokens": str(self.output_tokens),
            "seed": self.seed,
        }

    def requests(self) -> Iterator[Planned]:
        lengths, texts, places = sample(self.seed, LENGTHS), sample(self.seed, TEXTS), shuffled(self.seed)
        system = self.words.text(self.system_tokens, texts) if self.system_tokens else ""
        index = session = 0
        while True:
            segments = [("system", self.system_tokens)] if self.system_tokens else []
            for turn in range(self.turns.draw_count(lengths)):
                if self.input_tokens is None:
                    text = numbered(self.seed, index, chats()[next(places)].prompt)
                    tokens = estimate(text)
                else:
                    tokens = self.input_tokens.draw_count(lengths)
                    text = "" if self.form == "none" else self.words.text(tokens, texts)
                answer = self.output_tokens.draw_count(lengths)
                segments.append((f"conversation/{session}/{turn}/user", tokens + self.words.around))
                yield Planned(
                    index,
                    "conversation",
                    self._prompt(text, system if turn == 0 else ""),
                    sum(count for _, count in segments),
                    answer,
                    session=session,
                    turn=turn,
                    after=max(0.0, self.think.draw(lengths)) if turn else 0.0,
                    prefix=tuple(segments),
                )
                segments.append((answer_name(session, turn), answer))
                index += 1
            session += 1

    def _prompt(self, text: str, system: str) -> Prompt:
        """What a turn adds to the transcript; the first turn brings the system message."""
        if self.form == "chat" and system:
            return [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return said(f"{system}\n\n{text}" if system else text, self.form)

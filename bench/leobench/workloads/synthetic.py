"""Prompts without meaning, of given lengths: what a server's speed depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from leobench.workloads.lengths import Lengths
from leobench.workloads.planned import Planned, Prompt
from leobench.workloads.words import Words

# What prompts are made as: messages, text or token ids; for the simulator nothing at all.
Form = Literal["chat", "completions", "none"]


def made_up(tokens: int, form: Form, words: Words, generator: Generator) -> Prompt:
    """A prompt of `tokens` tokens."""
    match form:
        case "none":
            return ""
        case "completions":
            return words.id_list(tokens, generator)
        case "chat":
            return [{"role": "user", "content": words.text(max(1, tokens - words.around), generator)}]


def sample(seed: int, what: int) -> Generator:
    """Random numbers of a seed, for one purpose: lengths must not depend on whether texts are made."""
    return np.random.default_rng([seed, what])


LENGTHS, TEXTS, CHOICES = 2, 3, 4


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Prompts and answers of lengths that are drawn independently."""

    input_tokens: Lengths
    output_tokens: Lengths
    seed: int
    form: Form
    words: Words
    name: str = "random"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "input_tokens": str(self.input_tokens),
            "output_tokens": str(self.output_tokens),
            "seed": self.seed,
        }

    def requests(self) -> Iterator[Planned]:
        lengths, texts = sample(self.seed, LENGTHS), sample(self.seed, TEXTS)
        index = 0
        while True:
            tokens = self.input_tokens.draw_count(lengths)
            answer = self.output_tokens.draw_count(lengths)
            prompt = made_up(tokens, self.form, self.words, texts)
            yield Planned(index, self.name, prompt, tokens, answer)
            index += 1

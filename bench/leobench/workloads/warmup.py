"""Requests before the measured ones: as long as these, but of other texts, so that no cache knows what comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leobench.workloads.planned import Planned, Workload
from leobench.workloads.synthetic import Form, made_up, sample
from leobench.workloads.words import Words

WARMING = 9  # the purpose of the random numbers
UNKNOWN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The lengths of `measured`, made up."""

    measured: Workload
    seed: int
    form: Form
    words: Words
    name: str = "warm-up"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed}

    def requests(self) -> Iterator[Planned]:
        texts = sample(self.seed, WARMING)
        for planned in self.measured.requests():
            prompt = made_up(planned.prompt_tokens or UNKNOWN_TOKENS, self.form, self.words, texts)
            yield Planned(planned.index, self.name, prompt, planned.prompt_tokens, planned.output_tokens)

"""Made-up prompts of a given number of tokens: words whose cost is known, or token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from leobench.workloads.bundled import words

# A text of Llama's tokenizer has about so many characters a token when it is German: an estimate, where nobody counts.
CHARACTERS_PER_TOKEN = 2.6
TEMPLATE_TOKENS = 12  # around a message, another estimate
# Ids that every model has and that are no control tokens, where a server doesn't tell the ids of words.
COMMON_IDS = list(range(300, 2000))


@dataclass(frozen=True, slots=True)
class Words:
    """Words, and the tokens that each takes after a space.

    ids: token ids that prompts of ids are drawn from
    around: what the chat template adds to a message
    exact: the server's tokenizer counted, not an estimate
    """

    words: list[str]
    tokens: list[int]
    ids: list[int] = field(default_factory=lambda: COMMON_IDS)
    around: int = TEMPLATE_TOKENS
    exact: bool = False

    def text(self, tokens: int, generator: Generator) -> str:
        """Words of `tokens` tokens together, as closely as their costs allow; at least one word."""
        costs = np.array(self.tokens)
        cheapest = int(costs.min())
        places = generator.integers(len(costs), size=max(1, tokens // cheapest))
        total = costs[places].cumsum()
        fitting = int(np.searchsorted(total, tokens, side="right"))
        chosen = places[:fitting].tolist()
        rest = tokens - (int(total[fitting - 1]) if fitting else 0)
        cheap = np.flatnonzero(costs == cheapest)
        chosen += generator.choice(cheap, size=rest // cheapest).tolist()
        return " ".join(self.words[place] for place in chosen or [int(cheap[0])])

    def id_list(self, tokens: int, generator: Generator) -> list[int]:
        """`tokens` token ids."""
        return [self.ids[place] for place in generator.integers(len(self.ids), size=tokens).tolist()]


def estimate(text: str) -> int:
    """About how many tokens a German text has."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


ESTIMATED = Words(words(), [estimate(word) for word in words()])

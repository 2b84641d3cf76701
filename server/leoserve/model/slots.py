"""How the tokens of each slot are chosen, from a request's parameters to the device's tables.

Everything but grammars and `bad_words` is kept up to date by the kernels. What a grammar allows, and what would
complete a bad word, depends on the tokens before it, which the host looks at: such a slot gets a new mask before every
token, and is not computed ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leokernels.triton.state import SamplingState, SlotSettings, pack_bits
from leoserve.model.edits import BadWords
from leoserve.model.masks import Masks
from leoserve.model.step import Admitted, SamplingParams

NO_LOGPROBS = -1


@dataclass(slots=True)
class Words:
    """A slot's bad words, and what it bans whatever came before."""

    bad: BadWords
    always: NDArray[np.bool_]  # [vocab]


class SlotEdits:
    """The host's part of the sampling state: what it must know of a slot from step to step."""

    def __init__(self, state: SamplingState, slots: int) -> None:
        self.state = state
        self._words: list[Words | None] = [None] * slots
        self._logprobs = [NO_LOGPROBS] * slots
        self._prompt_logprobs = [0] * slots
        self._masks = Masks(slots, state.vocab, aside=True)

    def set_slot(self, slot: int, new: Admitted) -> None:
        """Give `slot` to a sequence. What it held before is forgotten."""
        params, vocab = new.params, self.state.vocab
        settings = slot_settings(params, new.index)
        if new.grammar is not None:
            settings = replace(settings, masked=True)
        self.state.set_slot(slot, settings, new.prompt, new.generated)
        self._logprobs[slot] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._prompt_logprobs[slot] = params.prompt_logprobs or 0
        self._words[slot] = None
        if settings.masked:
            bad = BadWords.of(params.bad_words, [*new.prompt, *new.generated], vocab)
            self._words[slot] = Words(bad, always_banned(settings, vocab))
        self._masks.set_slot(slot, new.grammar, new.generated)

    def begin(self, slots: Sequence[int]) -> None:
        """`ban` will follow for these slots: what their grammars allow can be found out meanwhile."""
        self._masks.begin(slots)

    def ban(self, slot: int) -> None:
        """Before a token is chosen: ban what the grammar does not allow, and what would complete a bad word."""
        words = self._words[slot]
        if words is not None:
            follows = slot in self._masks.matchers
            banned = words.always | ~self._masks.allowed_flags(slot) if follows else words.always.copy()
            banned[words.bad.banned()] = True
            self.state.ban(slot, pack_bits(banned))

    def add(self, slot: int, token: int) -> bool:
        """Take note of a token that was chosen. Whether its grammar allows nothing after it."""
        words = self._words[slot]
        if words is None:
            return False
        words.bad.add(token)
        matcher = self._masks.matchers.get(slot)
        if matcher is None:
            return False
        matcher.advance(token)
        return matcher.complete

    def fault(self, slot: int) -> str | None:
        """Why the slot's grammar cannot be followed on."""
        return self._masks.fault(slot)

    def logprobs(self, slot: int) -> int:
        """How many most likely tokens to report; -1: no log-probabilities at all."""
        return self._logprobs[slot]

    def prompt_logprobs(self, slot: int) -> int:
        """How many most likely tokens to report beside each of the prompt's."""
        return self._prompt_logprobs[slot]


def slot_settings(params: SamplingParams, index: int) -> SlotSettings:
    """The parameters of choice `index` of a request, as the kernels know them."""
    return SlotSettings(
        seed=params.seed,
        choice=index,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        bias=params.logit_bias,
        allowed=params.allowed_token_ids,
        banned=tuple(word[0] for word in params.bad_words if len(word) == 1),
        masked=any(len(word) > 1 for word in params.bad_words),
        min_tokens=params.min_tokens,
        stops=params.stop_token_ids if params.min_tokens else (),
    )


def always_banned(settings: SlotSettings, vocab: int) -> NDArray[np.bool_]:
    """[vocab]: what `allowed` leaves out, and what is banned by itself."""
    banned = np.full(vocab, settings.allowed is not None)
    banned[[token for token in settings.allowed or () if 0 <= token < vocab]] = False
    banned[[token for token in settings.banned if 0 <= token < vocab]] = True
    return banned

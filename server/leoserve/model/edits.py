"""What a request changes in its logits before a token is chosen: bans, biases and penalties.

The order is vLLM's: the grammar, allowed_token_ids, bad_words, min_tokens, logit_bias, repetition penalty, frequency
and presence penalty. State is sparse: a slot keeps the tokens it has seen with their counts, never a row of the
vocabulary. Ids that have no row or no token have no effect, since they are never sampled anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels import native
from leoserve.model.masks import Masks
from leoserve.model.step import SamplingParams

Ids = NDArray[np.int64]
NO_IDS: Ids = np.empty(0, dtype=np.int64)


class SeenTokens:
    """The distinct tokens of a sequence and how often each was generated (0: it is in the prompt only)."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int], vocab: int) -> None:
        known = np.unique(np.asarray([*prompt, *output], dtype=np.int64))
        known = known[(known >= 0) & (known < vocab)]
        self._size = len(known)
        self._ids = np.resize(known, self._size + 64) if self._size else np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._place = {token: place for place, token in enumerate(known.tolist())}
        for token in output:
            self.add(token)

    @property
    def ids(self) -> Ids:
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is None:
            if self._size == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            place = self._place[token] = self._size
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1


@dataclass(slots=True, eq=False)
class BadWords:
    """Token sequences that must not be completed, whether they began in the prompt or in the answer."""

    always: Ids  # sequences of one token
    endings: dict[int, list[tuple[list[int], int]]]  # by the last token before the end: (all before the end, the end)
    tail: list[int]  # the latest tokens, as many as the longest sequence needs
    longest: int

    @classmethod
    def of(cls, words: Collection[tuple[int, ...]], context: Sequence[int], vocab: int) -> BadWords:
        endings: dict[int, list[tuple[list[int], int]]] = {}
        for *start, end in (word for word in words if len(word) > 1 and 0 <= word[-1] < vocab):
            endings.setdefault(start[-1], []).append((start, end))
        longest = max((len(word) - 1 for word in words), default=0)
        tail = list(context[-longest:]) if longest > 0 else []
        return cls(_valid([word[0] for word in words if len(word) == 1], vocab), endings, tail, max(longest, 0))

    def add(self, token: int) -> None:
        if self.longest > 0:
            self.tail.append(token)
            del self.tail[: -self.longest]

    def banned(self) -> Ids:
        near = self.endings.get(self.tail[-1], []) if self.tail else []
        ends = [end for start, end in near if self.tail[-len(start) :] == start]
        return np.concatenate([self.always, np.array(ends, dtype=np.int64)]) if ends else self.always


@dataclass(slots=True, eq=False)
class Edits:
    """One slot's changes to its logits, and the state they follow from."""

    allowed: Ids | None = None
    bad_words: BadWords | None = None
    stop_ids: Ids = field(default_factory=lambda: NO_IDS)
    missing: int = 0  # tokens until min_tokens is reached
    bias_ids: Ids = field(default_factory=lambda: NO_IDS)
    bias: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    seen: SeenTokens | None = None
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        prompt: Sequence[int],
        output: Sequence[int],
        vocab: int,
    ) -> Edits | None:
        """What `params` ask for, as it stands after `output`; None if they change nothing. Grammars: masks.py."""
        edits = cls(repetition=params.repetition_penalty)
        edits.frequency, edits.presence = params.frequency_penalty, params.presence_penalty
        if params.allowed_token_ids is not None:
            edits.allowed = _valid(params.allowed_token_ids, vocab)
        if params.bad_words:
            edits.bad_words = BadWords.of(params.bad_words, [*prompt, *output], vocab)
        if params.stop_token_ids and params.min_tokens > len(output):
            edits.stop_ids = _valid(params.stop_token_ids, vocab)
            edits.missing = params.min_tokens - len(output)
        if params.logit_bias:
            edits.bias_ids = _valid(params.logit_bias, vocab)
            edits.bias = np.array([params.logit_bias[token] for token in edits.bias_ids.tolist()], dtype=np.float32)
        if edits.repetition != 1.0 or edits.frequency or edits.presence:
            # Only the repetition penalty is about the prompt, too.
            edits.seen = SeenTokens(prompt if edits.repetition != 1.0 else (), output, vocab)
        return edits if edits._does_something() else None

    def _does_something(self) -> bool:
        held = (self.allowed, self.bad_words, self.seen)
        return bool(self.missing or len(self.bias_ids)) or any(part is not None for part in held)

    def add(self, token: int) -> None:
        """Take note of a token that was chosen."""
        self.missing = max(self.missing - 1, 0)
        if self.bad_words is not None:
            self.bad_words.add(token)
        if self.seen is not None:
            self.seen.add(token)

    def banned(self) -> Ids:
        words = self.bad_words.banned() if self.bad_words is not None else NO_IDS
        return np.concatenate([words, self.stop_ids]) if self.missing else words


def apply_masks(logits: Tensor, rows: Sequence[tuple[int, int]], masks: Masks) -> None:
    """Leave what their grammars allow of [R, V] float32 logits. `rows` are pairs of a row and its slot."""
    if not rows:
        return
    if logits.device.type == "cpu" and native.missing() is None:
        places = np.array(rows, dtype=np.int64)
        native.mask(logits, places[:, 0], places[:, 1], masks.words())
        return
    for row, slot in rows:
        banned = torch.from_numpy(~masks.allowed_flags(slot)).to(logits.device)
        logits[row].masked_fill_(banned, -torch.inf)


def apply_edits(logits: Tensor, edits: Sequence[tuple[int, Edits]]) -> None:
    """Edit [R, V] contiguous logits in place: `edits` are pairs of a row and what is to be done to it."""
    flat = logits.view(-1)
    vocab = logits.shape[1]
    allowed = [(row, edit.allowed) for row, edit in edits if edit.allowed is not None]
    if allowed:
        places = _places(allowed, vocab, logits.device)
        values = flat[places]
        logits.index_fill_(0, torch.tensor([row for row, _ in allowed], device=logits.device), -torch.inf)
        flat.index_copy_(0, places, values)
    banned = [(row, ids) for row, edit in edits if len(ids := edit.banned())]
    if banned:
        flat.index_fill_(0, _places(banned, vocab, logits.device), -torch.inf)
    biased = [(row, edit) for row, edit in edits if len(edit.bias)]
    if biased:
        bias = torch.from_numpy(np.concatenate([edit.bias for _, edit in biased])).to(logits.device)
        flat.index_add_(0, _places([(row, edit.bias_ids) for row, edit in biased], vocab, logits.device), bias)
    penalized = [(row, edit, edit.seen) for row, edit in edits if edit.seen is not None and len(edit.seen.ids)]
    if penalized:
        _penalize(flat, vocab, penalized)


def _penalize(flat: Tensor, vocab: int, rows: Sequence[tuple[int, Edits, SeenTokens]]) -> None:
    """Repetition penalty: positive logits divided by it, others multiplied (Keskar et al., CTRL, 2019, as transformers
    does it). Then OpenAI's: minus count * frequency_penalty, minus presence_penalty where the count is not 0."""
    lengths = [len(seen.ids) for _, _, seen in rows]

    def spread(values: list[float]) -> NDArray[np.float32]:
        return np.repeat(np.array(values, dtype=np.float32), lengths)

    counts = np.concatenate([seen.counts for _, _, seen in rows])
    minus = counts * spread([edit.frequency for _, edit, _ in rows])
    minus += (counts > 0) * spread([edit.presence for _, edit, _ in rows])
    places = _places([(row, seen.ids) for row, _, seen in rows], vocab, flat.device)
    values = flat[places]
    if any(edit.repetition != 1.0 for _, edit, _ in rows):
        repetition = torch.from_numpy(spread([edit.repetition for _, edit, _ in rows])).to(flat.device)
        values = torch.where(values > 0, values / repetition, values * repetition)
    flat.index_copy_(0, places, values - torch.from_numpy(minus).to(flat.device))


def _places(rows: Sequence[tuple[int, Ids]], vocab: int, device: torch.device) -> Tensor:
    """Where the ids of each row are in the flattened logits."""
    return torch.from_numpy(np.concatenate([ids + row * vocab for row, ids in rows])).to(device)


def _valid(ids: Collection[int], vocab: int) -> Ids:
    unique = np.unique(np.array(list(ids), dtype=np.int64))
    return unique[(unique >= 0) & (unique < vocab)]

"""How the tokens of a slot are chosen from its logits: greedily, or by a draw at its temperature, within its limits.

A draw takes one uniform number from (seed, choice, position) (noise.py). Where the native library serves the CPU, one
call does all rows of a step; elsewhere PyTorch draws them, group by group (truncation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels import native
from leoserve.model.noise import Noise
from leoserve.model.step import SamplingParams
from leoserve.model.truncation import Truncation, draw

# Below this a temperature is greedy, as in vLLM: the division would leave float32's range.
GREEDY_BELOW = 1e-5

Ids = NDArray[np.int64]


class Draws:
    """The parameters of every slot."""

    def __init__(self, max_slots: int, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self.device = device
        self._temperature = np.zeros(max_slots, dtype=np.float32)  # 0: greedy
        self._limited = np.zeros(max_slots, dtype=np.bool_)
        self._top_k = np.full(max_slots, vocab)
        self._top_p = np.ones(max_slots)
        self._min_p = np.zeros(max_slots)
        self._noise = Noise(max_slots)

    def set_slot(self, slot: int, params: SamplingParams, index: int) -> None:
        """Give `slot` to choice `index` of a request."""
        greedy = params.temperature < GREEDY_BELOW or params.top_k == 1 or params.top_p <= 0
        self._temperature[slot] = 0 if greedy else params.temperature
        self._top_k[slot] = params.top_k if 0 < params.top_k < self.vocab else self.vocab
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._limited[slot] = self._top_k[slot] < self.vocab or params.top_p < 1 or params.min_p > 0
        self._noise.set_slot(slot, params.seed, index)

    def choose(
        self,
        logits: Tensor,
        slots: Sequence[int],
        positions: Sequence[int],
        masks: native.RowMasks | None,
    ) -> tuple[NDArray[np.float32], Tensor]:
        """Natively: the largest of each row of logits [R, V], and the tokens; both [R]. See native.choose."""
        where = np.array(slots)
        temperatures, limits = self._temperature[where], None
        rows = temperatures.nonzero()[0]
        if len(rows) == len(where):
            uniforms = self._noise.at(where, np.array(positions))
        else:
            uniforms = np.zeros(len(where))
            if len(rows):
                uniforms[rows] = self._noise.at(where[rows], np.array(positions)[rows])
        if len(rows) and self._limited[where].any():
            limits = native.Limits(self._top_k[where], self._top_p[where], self._min_p[where])
        peaks, ids = native.choose(logits, temperatures, uniforms, masks, limits)
        return peaks, torch.from_numpy(ids)

    def replace(self, tokens: Tensor, logits: Tensor, slots: Sequence[int], positions: Sequence[int]) -> None:
        """By PyTorch: put what is drawn in the place of the greedy choice in `tokens` [R]. Logits [R, V] are finite."""
        where = np.array(slots)
        rows = np.flatnonzero(self._temperature[where])
        uniform = self._noise.at(where[rows], np.array(positions)[rows])
        limited = self._limited[where[rows]]
        for group, cut in ((np.flatnonzero(~limited), False), (np.flatnonzero(limited), True)):
            if len(group):
                here = rows[group]
                probabilities, noise = self._probabilities(logits, here, where[here]), self._tensor(uniform[group])
                drawn = (
                    self._truncation(where[here]).sample(probabilities, noise) if cut else draw(probabilities, noise)
                )
                tokens.index_copy_(0, self._tensor(here), drawn)

    def _probabilities(self, logits: Tensor, rows: Ids, slots: Ids) -> Tensor:
        """Softmax of the rows at their temperatures, [S, V]."""
        scores = logits if len(rows) == len(logits) else logits[self._tensor(rows)]
        temperature = self._temperature[slots]
        if (temperature != 1).any():
            scores = scores / self._tensor(temperature)[:, None]
        return torch.softmax(scores, 1)

    def _truncation(self, slots: Ids) -> Truncation:
        top_k, top_p, min_p = (self._tensor(values[slots]) for values in (self._top_k, self._top_p, self._min_p))
        return Truncation(top_k, top_p, min_p, self.vocab)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

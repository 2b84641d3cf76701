"""From logits to tokens, for all rows of a step at once.

Order of processing, vLLM's, since its users' settings should mean the same here:

1. ids without a token are banned; log-probabilities are taken (logprobs.py);
2. the grammar, allowed_token_ids, bad_words, min_tokens, logit_bias, penalties (edits.py); what is greedy then takes
   the maximum;
3. temperature;
4. min_p, top_k, top_p, each over what the one before left (draws.py). transformers has min_p last: since it is
   relative to the most likely token, which all of them keep, only the mass that top_p is a share of differs;
5. one uniform number a row from (seed, choice, position) (noise.py), and the inverse of the cumulative distribution in
   the order of ids.

Every row's token is a function of its logits, its parameters and its history, bit by bit, whatever is beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels import native
from leoserve.model.draws import Draws
from leoserve.model.edits import Edits, apply_edits, apply_masks
from leoserve.model.logprobs import RawRows
from leoserve.model.masks import Masks, Moving, Startable
from leoserve.model.step import ErrorKind, Result, RowResult, SamplingParams, TokenLogprobs
from leoserve.model.truncation import argmax

# No logit of a working model comes near it, and divided by the smallest temperature it is still a float32.
TOO_LARGE = 1e30

GRAMMAR_FAILED = "its grammar is too much work"
NOT_FINITE = "the model's logits are not finite"
NOTHING_LEFT = "grammar, allowed_token_ids, bad_words, min_tokens and logit_bias leave no token to choose"


@dataclass(slots=True)
class Sampled:
    """What was chosen for each row of a step.

    A row that could not be sampled has the reason in `failed`, else None. Its token is then a valid id without meaning,
    which its slot takes no note of: the choice is to be ended with an error. Other rows are not touched by it.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]  # None where not asked for
    failed: list[str | None]
    complete: Collection[int] = ()  # rows whose grammar allows nothing after this token
    moving: Moving | None = None  # what will tell of more such rows, among those of which nothing else is to be said
    over: Collection[int] = ()  # rows whose answers were at their end before: their tokens are without meaning

    def results(self) -> list[Result]:
        """Row by row what the scheduler is told."""
        results: list[Result] = [*self.token_ids]
        if self.complete or any(self.logprobs) or any(self.failed):
            for row, (token, logprobs, why) in enumerate(zip(self.token_ids, self.logprobs, self.failed, strict=True)):
                complete = row in self.complete
                if logprobs is not None or why is not None or complete:
                    kind = _kind_of_error(why)
                    results[row] = RowResult(token, logprobs, None, why, kind, complete)
        for row in self.over:
            results[row] = RowResult(complete=True)
        return results


def _kind_of_error(why: str | None) -> ErrorKind:
    if why is None or why == NOT_FINITE:
        return "internal"
    return "grammar" if why.startswith(GRAMMAR_FAILED) else "invalid"


class Sampler:
    """Chooses tokens. Its state is per slot: parameters, and what bans and penalties need of the sequence so far."""

    def __init__(
        self, *, max_slots: int, vocab_size: int, token_ranges: list[tuple[int, int]], device: torch.device | str
    ) -> None:
        """`token_ranges`: the [start, stop) ids that have a token; none given means all of them have."""
        self.vocab = vocab_size
        self.device = torch.device(device)
        alive = torch.zeros(vocab_size, dtype=torch.bool)
        for start, stop in token_ranges or [(0, vocab_size)]:
            alive[start:stop] = True
        if not alive.any():
            raise ValueError(f"token_ranges {token_ranges} name no id below {vocab_size}")
        self._dead = Dead(~alive, self.device)
        self._any_id = int(alive.nonzero()[0])
        self._natively = self.device.type == "cpu" and native.missing() is None
        self._draws = Draws(max_slots, vocab_size, self.device)
        self._logprobs: dict[int, int] = {}  # by slot, and so are the edits: most slots have neither
        self._prompt_logprobs = [0] * max_slots
        self._edits: dict[int, Edits] = {}
        self._masks = Masks(max_slots, vocab_size, aside=self.device.type != "cpu")

    def set_slot(
        self,
        slot: int,
        params: SamplingParams,
        index: int,
        prompt: Sequence[int],
        output: Sequence[int],
        grammar: Startable | None = None,
    ) -> None:
        """Give `slot` to choice `index` of a request: when it gets a slot, and again after a preemption.

        `output` are the tokens it has generated so far. What the slot held before is forgotten.
        """
        self._draws.set_slot(slot, params, index)
        self._logprobs.pop(slot, None)
        if params.logprobs is not None:
            self._logprobs[slot] = params.logprobs
        self._prompt_logprobs[slot] = params.prompt_logprobs or 0
        self._masks.set_slot(slot, grammar, output)
        self._edits.pop(slot, None)
        edits = Edits.of(params, prompt, output, self.vocab)
        if edits is not None:
            self._edits[slot] = edits

    def begin(self, slots: Sequence[int]) -> None:
        """`sample` will follow for these slots: what their grammars allow can be found out meanwhile."""
        self._masks.begin(slots)

    def sample(self, logits: Tensor, slots: list[int], positions: list[int]) -> Sampled:
        """Choose a token for each row of [R, V] float32 `logits`, which are overwritten.

        `slots` are the rows' slots, each at most once, as they were given to `begin`; `positions` where in its sequence
        each new token will stand.
        """
        if not slots:
            return Sampled([], [], [])
        logits = self._over_tokens(logits)
        asked = _rows_in(self._logprobs, slots)
        raw = RawRows(logits[asked]) if asked else None
        edits = [(row, self._edits[slots[row]]) for row in _rows_in(self._edits, slots)]
        masked = self._masks.rows(slots)
        if edits:
            apply_edits(logits, edits)
        if self._natively:
            masks = self._masks.of_rows(slots) if masked else None
            peaks, tokens = self._draws.choose(logits, slots, positions, masks)
        else:
            apply_masks(logits, [(row, slots[row]) for row in masked], self._masks)
            peak, tokens = argmax(logits)
            peaks = peak.cpu().numpy()
        failed = self._check(logits, peaks, {*masked, *(row for row, _ in edits)})
        if not self._natively:
            self._draws.replace(tokens, logits, slots, positions)

        logprobs: list[TokenLogprobs | None] = [None] * len(slots)
        if raw is not None:
            counts = [self._logprobs[slots[row]] for row in asked]
            for row, entry in zip(asked, raw.of(tokens[asked], counts), strict=True):
                logprobs[row] = entry
                if entry.rank == 0:
                    failed[row] = NOT_FINITE
        token_ids: list[int] = tokens.tolist()
        over = self._masks.whole(slots, masked) if masked else []
        for row in over:
            failed[row] = logprobs[row] = None
        for row in _failures(failed):
            token_ids[row] = self._any_id
            logprobs[row] = None
        going = [row for row in masked if row not in over] if over else masked
        told = self._masks.advance(slots, self._moves(going, slots, token_ids, failed)) if masked else ([], None)
        for row, edit in edits:
            if failed[row] is None:
                edit.add(token_ids[row])
        return Sampled(token_ids, logprobs, failed, *told, over)

    def _moves(
        self, masked: list[int], slots: list[int], token_ids: list[int], failed: list[str | None]
    ) -> dict[int, int]:
        """Of the rows that follow a grammar, which go on, and their tokens. Where one does not, `failed` says why."""
        if not any(failed):
            return {row: token_ids[row] for row in masked}
        moves = {}
        for row in masked:
            if failed[row] is None:
                moves[row] = token_ids[row]
            elif (why := self._masks.fault(slots[row])) is not None:
                failed[row] = f"{GRAMMAR_FAILED}: {why}"
        return moves

    def score(self, logits: Tensor, slot: int, targets: Sequence[int]) -> list[TokenLogprobs]:
        """Log-probabilities of given tokens, one for each row of [N, V] float32 `logits`, which are overwritten.

        As many most likely ones as the slot's `prompt_logprobs`. A row that is not finite has a logprob of NaN.
        """
        raw = RawRows(self._over_tokens(logits))
        return raw.of(torch.tensor(targets, device=self.device), [self._prompt_logprobs[slot]] * len(targets))

    def _over_tokens(self, logits: Tensor) -> Tensor:
        logits = logits.contiguous()
        self._dead.ban(logits)
        return logits

    def _check(self, logits: Tensor, peaks: NDArray[np.float32], edited: set[int]) -> list[str | None]:
        """Which rows cannot be sampled, and why, by their largest logits `peaks` [R] after the edits.

        They are set to 0, so that nothing that follows meets a NaN.
        """
        failed: list[str | None] = [None] * len(peaks)
        sizes = np.abs(peaks)
        if not sizes.max() < TOO_LARGE:  # so it is where one is NaN
            rows = np.flatnonzero(~(sizes < TOO_LARGE))
            for row in rows.tolist():
                failed[row] = NOTHING_LEFT if peaks[row] == -np.inf and row in edited else NOT_FINITE
            logits.index_fill_(0, torch.from_numpy(rows).to(self.device), 0.0)
        return failed


class Dead:
    """The ids that have no token. As a rule they are the last ones, which make the network's rows a round number."""

    def __init__(self, dead: Tensor, device: torch.device) -> None:
        """`dead` [V] bool."""
        ids = dead.nonzero().squeeze(1)
        self._first = int(ids[0]) if len(ids) else len(dead)
        self._at_the_end = bool(dead[self._first :].all())
        self._ids = ids.to(device)

    def ban(self, logits: Tensor) -> None:
        """Set their logits to -inf, in place."""
        if not self._at_the_end:
            logits.index_fill_(1, self._ids, -torch.inf)
        elif self._first < logits.shape[1]:
            (logits.numpy() if logits.is_cpu else logits)[:, self._first :] = -torch.inf  # numpy takes half as long


def _rows_in(some: Collection[int], slots: Sequence[int]) -> list[int]:
    """The places in `slots` of those that are among `some`."""
    return [row for row, slot in enumerate(slots) if slot in some] if some else []


def _failures(failed: list[str | None]) -> list[int]:
    return [row for row, why in enumerate(failed) if why is not None] if any(failed) else []

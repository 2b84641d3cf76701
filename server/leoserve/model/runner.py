"""Runs the scheduler's steps: one forward pass, then one sampling pass over the rows that want a token.

The runner of a device that computes while the host waits: a step's results are there when `launch` returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from leoserve.model.batch import Batch, BlockTables, Int64, build_batch
from leoserve.model.llama import Llama
from leoserve.model.sampler import Sampler
from leoserve.model.step import Computed, Late, Result, Row, RowResult, Step, TokenLogprobs, in_full

LOGITS_PER_PASS = 64  # rows of logits that a scored prompt holds at a time


class Runner:
    """A network, its paged cache and its sampler. Holds the persistent state of every slot."""

    def __init__(
        self,
        model: Llama,
        sampler: Sampler,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.device = model.device
        blocks_per_sequence = -(-max_model_len // block_size)
        self.tables = BlockTables(slots=max_num_seqs, blocks_per_sequence=blocks_per_sequence, block_size=block_size)
        self._last_token = np.zeros(max_num_seqs, dtype=np.int64)
        self.key_value = model.new_cache(num_blocks, block_size)

    @torch.inference_mode()
    def launch(self, step: Step) -> Computed:
        """Compute a step. Row by row what it brought, in the order of `step.rows`."""
        rows = step.rows
        # All that follows is about these; the others are one token more each, of which everything is known.
        notable = [
            number for number, row in enumerate(rows) if row.tokens is not None or row.new_blocks or not row.samples
        ]
        self._prepare_slots(step, notable)
        known = [(number, tokens) for number in notable if (tokens := rows[number].tokens) is not None]
        batch = build_batch(rows, known, self.tables, self._last_token, self.device)
        silent = {number for number in notable if not rows[number].samples}
        wanted = [number for number in range(len(rows)) if number not in silent] if silent else range(len(rows))
        self.sampler.begin([batch.slots[number] for number in wanted] if silent else batch.slots)
        ends = self._ends(batch, wanted) if notable else None
        scores = any(rows[number].targets is not None for number, _ in known)
        hidden = self.model.forward(
            batch.tokens, batch.positions, self.key_value, batch.metadata, None if scores else ends
        )
        scored = self._score_prompts(step, hidden) if scores else []
        if scores and ends is not None:
            hidden = hidden[ends]
        results, late = self._sample(batch, wanted, hidden)  # last: a sampler that was done cannot be tried again
        for number, logprobs in scored:
            result = results[number] = in_full(results[number])
            result.prompt_logprobs = logprobs
        return Computed(results, late)

    def _prepare_slots(self, step: Step, notable: list[int]) -> None:
        if step.copies:
            sources = torch.tensor([source for source, _ in step.copies], device=self.device)
            targets = torch.tensor([target for _, target in step.copies], device=self.device)
            for layer in self.key_value:
                layer.copy_blocks(sources, targets)
        for number in notable:
            row = step.rows[number]
            if row.new_blocks:
                self.tables.update(row)
            if row.admitted is not None:
                new = row.admitted
                self.sampler.set_slot(row.slot, new.params, new.index, new.prompt, new.generated, new.grammar)

    def _ends(self, batch: Batch, wanted: Sequence[int]) -> torch.Tensor | None:
        """Of the `wanted` rows, the last tokens among the step's [W] int64; None: these are all tokens there are.

        Where no row is wanted it is the last of all, since a network has to compute something.
        """
        if len(wanted) == len(batch.tokens):
            return None
        return batch.metadata.query_start[1:].long()[list(wanted) or [-1]] - 1

    def _sample(self, batch: Batch, wanted: Sequence[int], hidden: torch.Tensor) -> tuple[list[Result], Late | None]:
        """Row by row the next token, where one is `wanted`, from the hidden state of the row's last token [W, ...].

        And what is told late of the rows.
        """
        slots, positions = batch.slots, batch.metadata.context_lens  # where a row's next token will stand
        if len(wanted) == len(slots):
            return self._choose(hidden, slots, batch.where, positions)
        results: list[Result] = [RowResult() for _ in slots]
        if not wanted:
            return results, None
        chosen = [slots[number] for number in wanted], batch.where[wanted], [positions[number] for number in wanted]
        given, late = self._choose(hidden, *chosen)
        for number, result in zip(wanted, given, strict=True):
            results[number] = result
        if late is None:
            return results, None
        return results, lambda *, wait: [wanted[place] for place in late(wait=wait)]

    def _choose(
        self, hidden: torch.Tensor, slots: list[int], where: Int64, positions: list[int]
    ) -> tuple[list[Result], Late | None]:
        """The next token of each of these slots, of which `where` is an array; and what is told late."""
        sampled = self.sampler.sample(self.model.logits(hidden), slots, positions)
        self._last_token[where] = np.fromiter(sampled.token_ids, dtype=np.int64, count=len(slots))
        return sampled.results(), sampled.moving.ended if sampled.moving is not None else None

    def _score_prompts(self, step: Step, hidden: torch.Tensor) -> list[tuple[int, list[TokenLogprobs]]]:
        """Log-probabilities of prompt tokens, for the rows that want them."""
        scored = []
        start = 0
        for number, row in enumerate(step.rows):
            if row.targets is not None:
                scored.append((number, self._score(row, hidden[start:], row.targets)))
            start += row.count
        return scored

    def _score(self, row: Row, hidden: torch.Tensor, targets: Sequence[int]) -> list[TokenLogprobs]:
        scored: list[TokenLogprobs] = []
        for begin in range(0, len(targets), LOGITS_PER_PASS):
            part = targets[begin : begin + LOGITS_PER_PASS]
            logits = self.model.logits(hidden[begin : begin + len(part)])
            scored += self.sampler.score(logits, row.slot, part)
        return scored

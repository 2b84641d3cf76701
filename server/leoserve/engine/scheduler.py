"""Continuous batching: which tokens of which sequences the next step computes.

Every step has a token budget. Running sequences come first (one token each, or their next chunk of prefill), then
waiting ones in priority-then-arrival order while slots, blocks and budget last. There are no prefill and decode phases:
a sequence just has tokens that are not yet computed (chunked prefill after Agrawal et al., 2024, arXiv:2403.02310).
Out of blocks, the youngest sequence of the lowest priority gives its blocks back and is computed again later.

A step may be planned while others are in flight, for the value of a sampled token is never needed, only that there is
one. What is certain to end is not planned again. A stop that is found late has cost one token: it is dropped, its block
is not offered to the prefix cache, and blocks and slot are given back once no step in flight knows of them.

A token's keys may differ in their last bits with the way they were computed: alone, as generated ones are, or beside
others, as a prompt's are. `deterministic` makes that the same in every history: a prompt's tokens are always computed
as a prompt's, generated ones always alone (also when computed again after a preemption), and only a prompt's full
blocks are offered to the prefix cache. With kernels whose rows do not depend on each other an answer then has the same
bits whatever else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.draft import NO_BLOCKS, Draft, new_row
from leoserve.engine.holdings import RUNNING, Holdings
from leoserve.engine.limits import SchedulerLimits
from leoserve.engine.outputs import end_of, finish_reason, output_of
from leoserve.engine.pacing import Pace
from leoserve.engine.request import EngineStats, FinishReason, TokenOutput
from leoserve.engine.sequence import Sequence
from leoserve.model.step import Result, Row, RowResult, Step, in_full

__all__ = ["Scheduler", "SchedulerLimits", "Wanted"]

Wanted = tuple[list[Sequence], dict[Sequence, int]]  # who gets a row; how many tokens, where it is not one


class Scheduler(Holdings):
    """Plans steps and takes in their results. Single-threaded; only `admission` may be used from another thread."""

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        admission: Admission,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limits.max_tokens_per_step < limits.max_sequences:
            raise ValueError("every running sequence needs a token of the budget")
        super().__init__(limits, pool, admission, clock)
        self._completed: list[Sequence] = []  # row i of the last step that was completed belongs to sequence i
        self._pace = None if limits.prefill_stretch is None else Pace(limits.prefill_stretch)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._in_flight)

    def plan(self) -> Step | None:
        """The next step, or None when there is nothing to compute, or nothing before the results of those in flight.

        A step's results must come back through `complete`, in the order of planning.
        """
        wanted = self._wanted()
        if self._in_flight and self._lacks_blocks(wanted):
            return None  # somebody must give blocks back, and those that are being written are not to be had
        draft = Draft()
        preemptions = self.stats.preemptions
        self._go_on(draft, wanted)
        if self.waiting and self.stats.preemptions == preemptions:  # else what was just preempted would come and go
            self._admit_waiting(draft)
        if not draft.rows:
            return None
        self._take_on(draft)
        step = Step(draft.rows, draft.copies)
        self._in_flight.append((step, draft.sequences))
        return step

    def _go_on(self, draft: Draft, wanted: Wanted) -> None:
        """Rows for the running sequences. Nearly all are one token more, for which the runner knows all there is."""
        able, longer = wanted
        rows, sequences = draft.rows, draft.sequences
        for sequence in able:
            start = sequence.num_computed
            if start < sequence.ready_until:
                rows.append(Row(sequence.slot, start, None, 0, NO_BLOCKS, True, True))
                sequences.append(sequence)
                sequence.num_computed = start + 1
            else:
                tokens = longer.get(sequence, 1)
                if self._reserve(sequence, tokens):
                    draft.add(new_row(sequence, tokens, deterministic=self.limits.deterministic), sequence)

    def _take_on(self, draft: Draft) -> None:
        """The step is on its way: what it computes counts as computed from here on. Rows that decode go first."""
        for row, sequence in draft.added:
            sequence.num_computed = row.start + row.count
            if row.samples:
                sequence.has_sampled = True
                sequence.ready_until = sequence.num_uploaded * self.limits.block_size
        if not all(row.decodes for row, _ in draft.added):
            order = sorted(range(len(draft.rows)), key=lambda place: not draft.rows[place].decodes)
            draft.rows = [draft.rows[place] for place in order]
            draft.sequences = [draft.sequences[place] for place in order]

    def _wanted(self) -> Wanted:
        """The running sequences that can go on, and how many tokens the budget allows those that have several."""
        able = self.running.copy()
        if self._in_flight:
            able = [each for each in able if each.num_uncomputed and not self._must_wait(each)]
        longest = {each: self._longest_row(each) for each in able if not each.has_sampled}
        longer = {sequence: tokens for sequence, tokens in longest.items() if tokens > 1}
        return self._within_budget(able, longer, len(able) - len(longer)) if longer else (able, longer)

    def _within_budget(self, able: list[Sequence], longer: dict[Sequence, int], decoding: int) -> Wanted:
        """How many of the tokens that each could compute fit in the step, `decoding` of them having one."""
        budget = self.limits.max_tokens_per_step - decoding  # a long prompt never starves those who generate
        paced = self._paced_tokens(beside=decoding)
        for sequence, longest in longer.items():
            tokens = min(longest, budget, paced) if sequence.paced else min(longest, budget)
            budget -= tokens
            paced -= tokens if sequence.paced else 0
            longer[sequence] = tokens
        return [sequence for sequence in able if longer.get(sequence, 1)], longer

    def _paced_tokens(self, *, beside: int) -> int:
        """How many tokens of prompts that take several steps the next one may compute, beside rows that decode."""
        return self._pace.tokens() if self._pace is not None and beside else self.limits.max_tokens_per_step

    def _longest_row(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens can be computed in one row."""
        if not self.limits.deterministic:
            return sequence.num_uncomputed
        prompt = sequence.num_prompt - sequence.num_computed
        return min(prompt, sequence.num_uncomputed) if prompt > 0 else 1

    def _must_wait(self, sequence: Sequence) -> bool:
        """Whether the token in flight is certain to be the last, or must be known before the next can be chosen."""
        return (sequence.length >= sequence.limit or sequence.known_first) and sequence.num_pending > 0

    def _lacks_blocks(self, wanted: Wanted) -> bool:
        """Whether there are too few free blocks for these tokens."""
        able, longer = wanted
        most = len(able) + self._blocks_for(self.limits.max_tokens_per_step)  # a row begins one more than it fills
        free = self.pool.num_free
        return most > free and sum(self._missing_blocks(each, longer.get(each, 1)) for each in able) > free

    def _admit_waiting(self, draft: Draft) -> None:
        """Start waiting sequences, the first in order first; none overtakes one that only lacks blocks."""
        budget = self._unplanned(draft)
        paced = self._paced_tokens(beside=sum(row.decodes for row in draft.rows))
        for row, sequence in draft.added:
            paced -= row.count if sequence.paced and not row.decodes else 0
        for sequence in list(self.waiting):
            if budget <= 0 or not self._free_slots:
                return
            if paced <= 0 and len(sequence.tokens) > self.limits.max_tokens_per_step:
                continue  # another long prompt takes what there is for them
            donor = self._donor(sequence)
            if donor is not None and donor.num_computed < donor.num_prompt:
                continue  # its sibling is still computing the prompt that both share
            if not self._start(sequence, donor, draft):
                return
            tokens = min(self._longest_row(sequence), budget)
            if sequence.paced:
                tokens = min(tokens, paced)
                paced -= tokens
            budget -= tokens
            draft.add(new_row(sequence, tokens, deterministic=self.limits.deterministic, admitted=True), sequence)

    def _unplanned(self, draft: Draft) -> int:
        """How many tokens a step has room for beside its rows."""
        return self.limits.max_tokens_per_step - len(draft.rows) - sum(row.count - 1 for row, _ in draft.added)

    def complete(
        self,
        step: Step,
        results: Iterable[Result],
        seconds: float = 0.0,
        ended: Callable[[], Collection[int]] = tuple,
    ) -> list[TokenOutput]:
        """Take in a step's results; returns what the clients get. Sequences that ended meanwhile get nothing.

        `ended` tells of more rows after whose tokens nothing can follow: see `end`. It is asked here only where a token
        is the last in any case, for the reason that the client gets. Raises ValueError for another step than the first
        of those in flight.
        """
        if not self._in_flight or self._in_flight[0][0] is not step:
            raise ValueError("steps are completed in the order in which they were planned")
        _, sequences = self._in_flight.popleft()
        outputs: list[TokenOutput] = []
        silent = 0  # outputs without a token
        size = self.limits.block_size
        for row, result, sequence in zip(step.rows, results, sequences, strict=True):
            if sequence.status is not RUNNING:
                continue
            end = row.start + 1
            if (  # nearly every row: one token more, at which nothing ends, no answer and no block
                type(result) is int
                and row.tokens is None
                and end % size
                and end + 1 < sequence.limit
                and result not in sequence.stop_token_ids
            ):
                sequence.tokens.append(result)
                name, cached, begin = sequence.request_id, sequence.num_cached, sequence.scheduled_at or 0.0
                outputs.append(TokenOutput(name, sequence.index, [result], None, None, None, cached, begin))
                continue
            whole = in_full(result)
            last = row.samples and len(sequence.tokens) + 1 >= sequence.limit
            if last and sequence.grammar is not None and step.rows.index(row) in ended():
                whole.complete = True
            output = self._advance(sequence, row, whole)
            if output is not None:
                outputs.append(output)
                silent += not output.token_ids
        self._completed = sequences
        if self._leaving:
            self._let_go(step)
        if self._pace is not None:
            self._pace.note(step, seconds)
        self.stats.steps += 1
        self.stats.generation_tokens += len(outputs) - silent
        self.stats.step_tokens, self.stats.step_seconds = step.num_tokens, seconds
        return outputs

    def end(self, numbers: Iterable[int]) -> list[TokenOutput]:
        """End the answers of these rows of the step that was completed last; returns what the clients get.

        Their grammars allow nothing after their tokens. To be called before the next step is planned.
        """
        sequences = [self._completed[number] for number in numbers]
        going = [sequence for sequence in sequences if sequence.status is RUNNING]
        for sequence in going:
            self._end(sequence)
        return [end_of(sequence) for sequence in going]

    def _advance(self, sequence: Sequence, row: Row, result: RowResult) -> TokenOutput | None:
        """The row's tokens are computed, and its sampled token is the sequence's next."""
        end = row.start + (1 if row.tokens is None else len(row.tokens))
        if row.start < sequence.num_prompt:
            self.stats.prompt_tokens += min(end, sequence.num_prompt) - row.start
        if result.error is not None:
            self._end(sequence)
            return output_of(sequence, row, [], None, "error", failed=result)
        self._index_full_blocks(sequence, end)
        if result.prompt_logprobs is not None:
            sequence.prompt_logprobs += result.prompt_logprobs
        if not row.samples:
            if end < sequence.num_prompt or sequence.limit > sequence.num_prompt:
                return None
            self._end(sequence)  # a prompt that was only to be scored
            return output_of(sequence, row, [], None, "length")
        token = result.token
        if token is None:
            if not result.complete:
                raise ValueError("a row that samples came back without a token")
            self._end(sequence)
            return end_of(sequence)
        sequence.tokens.append(token)
        reason: FinishReason | None = None
        request = sequence.request
        if result.complete or len(sequence.tokens) >= sequence.limit or token in request.params.stop_token_ids:
            reason = "stop" if result.complete else finish_reason(sequence, token)
            if reason is not None:
                self._end(sequence)
        return output_of(sequence, row, [token], result.logprobs, reason)

    def snapshot(self) -> EngineStats:
        """The counts as they are now."""
        self.stats.running, self.stats.waiting = self.num_running, len(self.waiting)
        self.stats.blocks_used = self.pool.num_blocks - self.pool.num_free
        return self.stats

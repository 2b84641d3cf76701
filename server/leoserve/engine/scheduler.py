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

import heapq
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.pacing import Pace
from leoserve.engine.request import EngineStats, FinishReason, Request, TokenLogprobs, TokenOutput
from leoserve.engine.sequence import NO_SLOT, Sequence, Status
from leoserve.model.step import Admitted, Result, Row, RowResult, Step, in_full

if TYPE_CHECKING:
    from leoserve.model.grammar import CompiledGrammar

Wanted = tuple[list[Sequence], dict[Sequence, int]]  # who gets a row; how many tokens, where it is not one
NO_BLOCKS: tuple[int, ...] = ()
RUNNING = Status.RUNNING  # an enum's member takes longer to look up than all else that is asked of it


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step and of one sequence. `max_tokens_per_step` is at least `max_sequences`.

    `prefill_stretch`: with a part of a long prompt a step takes at most so many times as long, while others generate.
    """

    max_sequences: int
    max_tokens_per_step: int
    max_model_len: int
    block_size: int
    prefix_caching: bool = True
    deterministic: bool = False
    prefill_stretch: float | None = None


@dataclass(slots=True)
class Draft:
    """A step that is being planned: row i is for sequence i. What it computes is not yet counted of those `added`."""

    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    added: list[tuple[Row, Sequence]] = field(default_factory=list)

    def add(self, row: Row, sequence: Sequence) -> None:
        self.rows.append(row)
        self.sequences.append(sequence)
        self.added.append((row, sequence))


class Scheduler:
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
        self.limits = limits
        self.pool = pool
        self.admission = admission
        self.stats = EngineStats(blocks_total=pool.num_blocks)
        self._clock = clock
        self._pace = None if limits.prefill_stretch is None else Pace(limits.prefill_stretch)
        self._serial = count()
        self._free_slots = list(range(limits.max_sequences))  # a heap: low slots first keep batches dense
        self.waiting: list[Sequence] = []  # both in `Sequence.order`
        self.running: list[Sequence] = []
        self._choices: dict[str, list[Sequence]] = {}
        self._in_flight: deque[tuple[Step, list[Sequence]]] = deque()  # row i of a step belongs to sequence i
        # ended, but a step in flight may still write into their blocks: the last such step
        self._leaving: dict[Sequence, Step] = {}

    def add(self, request: Request, grammar: CompiledGrammar | None = None) -> None:
        """Queue all choices of an admitted request. `grammar`: its grammar, if it has one."""
        if request.request_id in self._choices:
            raise ValueError(f"request id {request.request_id!r} is in use")
        limit = min(len(request.prompt) + request.params.max_tokens, self.limits.max_model_len)
        sequences = [
            Sequence(request, index, next(self._serial), list(request.prompt), limit, grammar=grammar)
            for index in range(request.params.n)
        ]
        self._choices[request.request_id] = sequences
        for sequence in sequences:
            insort(self.waiting, sequence, key=_order)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, in whatever state. Unknown ids are ignored."""
        for sequence in list(self._choices.get(request_id, ())):
            if index is None or sequence.index == index:
                self._end(sequence)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._in_flight)

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot and are not at their end."""
        return len(self.running)

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
                    draft.add(self._row(sequence, tokens), sequence)

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

    def complete(self, step: Step, results: Iterable[Result], seconds: float = 0.0) -> list[TokenOutput]:
        """Take in a step's results; returns what the clients get. Sequences that ended meanwhile get nothing.

        Raises ValueError for another step than the first of those in flight.
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
            output = self._advance(sequence, row, in_full(result))
            if output is not None:
                outputs.append(output)
                silent += not output.token_ids
        if self._leaving:
            self._let_go(step)
        if self._pace is not None:
            self._pace.note(step, seconds)
        self.stats.steps += 1
        self.stats.generation_tokens += len(outputs) - silent
        self.stats.step_tokens, self.stats.step_seconds = step.num_tokens, seconds
        return outputs

    def snapshot(self) -> EngineStats:
        """The counts as they are now."""
        self.stats.running, self.stats.waiting = self.num_running, len(self.waiting)
        self.stats.blocks_used = self.pool.num_blocks - self.pool.num_free
        return self.stats

    def check(self) -> None:
        """Raise RuntimeError unless blocks, slots and counts agree. For tests and idle moments."""
        holders = self.running + list(self._leaving)
        self.pool.check(sequence.blocks for sequence in holders)
        if any(sequence.blocks or sequence.slot != NO_SLOT for sequence in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks or a slot")
        slots = sorted(self._free_slots + [sequence.slot for sequence in holders])
        if slots != list(range(self.limits.max_sequences)):
            raise RuntimeError("a slot is lost or held twice")
        if any(all(step is not last for step, _ in self._in_flight) for last in self._leaving.values()):
            raise RuntimeError("a sequence that has ended holds blocks for no step")
        known = sum(len(sequences) for sequences in self._choices.values())
        if known != len(self.waiting) + len(self.running):
            raise RuntimeError("a sequence is in no queue, or in two")

    def _lacks_blocks(self, wanted: Wanted) -> bool:
        """Whether there are too few free blocks for these tokens."""
        able, longer = wanted
        most = len(able) + self._blocks_for(self.limits.max_tokens_per_step)  # a row begins one more than it fills
        free = self.pool.num_free
        return most > free and sum(self._missing_blocks(each, longer.get(each, 1)) for each in able) > free

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        """How many blocks a running sequence lacks to compute its next `tokens`."""
        return max(0, self._blocks_for(sequence.num_computed + tokens) - len(sequence.blocks))

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for a running sequence's next `tokens`, taken from younger ones if need be.

        False when the sequence itself was the youngest and had to go, or has gone already.
        """
        if sequence.status is not RUNNING:
            return False
        missing = self._missing_blocks(sequence, tokens)
        while missing > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue. Its full blocks stay findable; tokens already sent stay as they are.

        Never while a step is in flight: `plan` waits for it first.
        """
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = sequence.num_indexed = sequence.num_uploaded = sequence.ready_until = 0
        sequence.has_sampled = False
        sequence.prompt_logprobs.clear()
        insort(self.waiting, sequence, key=_order)
        self.stats.preemptions += 1

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
            draft.add(self._row(sequence, tokens, admitted=True), sequence)

    def _unplanned(self, draft: Draft) -> int:
        """How many tokens a step has room for beside its rows."""
        return self.limits.max_tokens_per_step - len(draft.rows) - sum(row.count - 1 for row, _ in draft.added)

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """A running choice of the same request, whose prompt blocks can be shared."""
        if sequence.request.params.n == 1:
            return None
        siblings = self._choices[sequence.request.request_id]
        return next((other for other in siblings if other.status is Status.RUNNING), None)

    def _start(self, sequence: Sequence, donor: Sequence | None, draft: Draft) -> bool:
        """Give a waiting sequence a slot and blocks for all its tokens, or change nothing and return False.

        Blocks for everything that is known, and one for each running sequence to grow into: what is started should
        not have to be preempted at once.
        """
        size = self.limits.block_size
        shared, source = self._shared_blocks(sequence, donor)
        needed = self._blocks_for(len(sequence.tokens)) - len(shared)
        from_free = sum(self.pool.references(block) == 0 for block in shared)
        if needed + from_free + self.num_running > self.pool.num_free:
            return False
        for block in shared:
            self.pool.share(block)
        sequence.blocks = shared + self.pool.allocate(needed)
        sequence.num_computed = len(shared) * size
        if source is not None:  # the donor goes on writing into its last block: the choice gets a copy of its own
            draft.copies.append((source, sequence.blocks[len(shared)]))
            sequence.num_computed = sequence.num_prompt - 1
        self._enter_running(sequence)
        return True

    def _shared_blocks(self, sequence: Sequence, donor: Sequence | None) -> tuple[list[int], int | None]:
        """Full blocks that need no computing, and the donor's partial block to copy, if any.

        At least one token is always left to compute: its logits are what is sampled.
        """
        size = self.limits.block_size
        if donor is not None:
            full, rest = divmod(sequence.num_prompt - 1, size)
            return donor.blocks[:full], donor.blocks[full] if rest else None
        if not self.limits.prefix_caching or sequence.request.params.prompt_logprobs is not None:
            return [], None
        known = len(sequence.tokens) - 1
        if self.limits.deterministic:  # its answer was computed token by token, another's prompt that has it was not
            known = min(known, sequence.num_prompt)
        full = known // size
        return self.pool.find(sequence.hashes(size, full)), None

    def _enter_running(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        sequence.status = Status.RUNNING
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.num_indexed = sequence.num_computed // self.limits.block_size
        sequence.paced = len(sequence.tokens) - sequence.num_computed > self.limits.max_tokens_per_step
        self.stats.prefix_queries += len(sequence.tokens)
        self.stats.prefix_hits += sequence.num_computed
        if sequence.scheduled_at is None:
            sequence.scheduled_at = self._clock()
            sequence.num_cached = sequence.num_computed
            self.stats.cached_tokens += sequence.num_computed
            self.admission.started(sequence.request, sequence.index)

    def _row(self, sequence: Sequence, tokens: int, *, admitted: bool = False) -> Row:
        start, end = sequence.num_computed, sequence.num_computed + tokens
        known = sequence.num_uploaded
        row = Row(
            sequence.slot,
            start,
            None if sequence.has_sampled else sequence.tokens[start:end],
            known,
            sequence.blocks[known:] if len(sequence.blocks) > known else NO_BLOCKS,
            end == sequence.length and sequence.limit > sequence.num_prompt,
            start >= sequence.num_prompt if self.limits.deterministic else tokens == 1,
        )
        if start < sequence.num_prompt:
            self._add_prompt(row, sequence, end)
        if admitted:
            request, generated = sequence.request, sequence.tokens[sequence.num_prompt :]
            row.admitted = Admitted(request.params, sequence.index, request.prompt, generated, sequence.grammar)
        sequence.num_uploaded = len(sequence.blocks)
        return row

    def _add_prompt(self, row: Row, sequence: Sequence, end: int) -> None:
        """To a row with prompt tokens: whose log-probabilities are wanted."""
        params = sequence.request.params
        if params.prompt_logprobs is not None and sequence.index == 0 and sequence.num_generated == 0:
            row.targets = sequence.request.prompt[row.start + 1 : end + 1]

    def _advance(self, sequence: Sequence, row: Row, result: RowResult) -> TokenOutput | None:
        """The row's tokens are computed, and its sampled token is the sequence's next."""
        end = row.start + (1 if row.tokens is None else len(row.tokens))
        if row.start < sequence.num_prompt:
            self.stats.prompt_tokens += min(end, sequence.num_prompt) - row.start
        if result.error is not None:
            self._end(sequence)
            return self._output(sequence, row, [], None, "error", failed=result)
        self._index_full_blocks(sequence, end)
        if result.prompt_logprobs is not None:
            sequence.prompt_logprobs += result.prompt_logprobs
        if not row.samples:
            if end < sequence.num_prompt or sequence.limit > sequence.num_prompt:
                return None
            self._end(sequence)  # a prompt that was only to be scored
            return self._output(sequence, row, [], None, "length")
        token = result.token
        if token is None:
            raise ValueError("a row that samples came back without a token")
        sequence.tokens.append(token)
        reason: FinishReason | None = None
        request = sequence.request
        if result.complete or len(sequence.tokens) >= sequence.limit or token in request.params.stop_token_ids:
            reason = "stop" if result.complete else self._finish_reason(sequence, token)
            if reason is not None:
                self._end(sequence)
        return self._output(sequence, row, [token], result.logprobs, reason)

    def _output(
        self,
        sequence: Sequence,
        row: Row,
        tokens: list[int],
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
        *,
        failed: RowResult | None = None,
    ) -> TokenOutput:
        request = sequence.request
        logprobs_list = None if logprobs is None else [logprobs]
        scheduled_at = sequence.scheduled_at or 0.0
        output = TokenOutput(
            request.request_id, sequence.index, tokens, logprobs_list, reason, None, sequence.num_cached, scheduled_at
        )
        if reason == "stop":  # a grammar ends an answer without one
            output.stop_token = next((token for token in tokens if token in request.params.stop_token_ids), None)
        if failed is not None:
            output.error, output.error_kind = failed.error, failed.error_kind
        elif row.targets is not None:
            output.prompt_logprobs = [None, *sequence.prompt_logprobs]  # nothing precedes the first token
        return output

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        params = sequence.request.params
        if token in params.stop_token_ids and sequence.num_generated > params.min_tokens:
            return "stop"
        if len(sequence.tokens) >= sequence.limit:
            return "length"
        return None

    def _index_full_blocks(self, sequence: Sequence, end: int) -> None:
        """Offer the full blocks before position `end`: their tokens are known and their keys computed."""
        if not self.limits.prefix_caching:
            return
        if self.limits.deterministic:
            end = min(end, sequence.num_prompt)
        full = end // self.limits.block_size
        if full > sequence.num_indexed:
            hashes = sequence.hashes(self.limits.block_size, full)
            for position in range(sequence.num_indexed, full):
                self.pool.index(sequence.blocks[position], hashes[position])
            sequence.num_indexed = full

    def _end(self, sequence: Sequence) -> None:
        """Take a sequence out of every list and free what it holds, at once or when no step in flight uses it."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            last = next((step for step, sequences in reversed(self._in_flight) if sequence in sequences), None)
            if last is None:
                self._give_back(sequence)
            else:
                self._leaving[sequence] = last
        else:
            self.waiting.remove(sequence)
        if sequence.scheduled_at is None:
            self.admission.started(sequence.request, sequence.index)
        sequence.status = Status.FINISHED
        siblings = self._choices[sequence.request.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._choices[sequence.request.request_id]

    def _let_go(self, done: Step) -> None:
        """Free what ended sequences hold and no step in flight uses any more, now that this one is done."""
        for sequence in [sequence for sequence, last in self._leaving.items() if last is done]:
            del self._leaving[sequence]
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.blocks))
        sequence.blocks = []
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = NO_SLOT

    def _blocks_for(self, length: int) -> int:
        return -(-length // self.limits.block_size)


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order

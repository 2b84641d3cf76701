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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.pacing import Pace
from leoserve.engine.request import EngineStats, FinishReason, Request, TokenLogprobs, TokenOutput
from leoserve.engine.sequence import NO_SLOT, Sequence, Status
from leoserve.model.step import Admitted, Row, RowResult, Step

if TYPE_CHECKING:
    from leoserve.model.grammar import CompiledGrammar

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
        self._leaving: list[Sequence] = []  # ended, but a step in flight may still write into their blocks

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
        step = Step()
        rows, sequences = step.rows, list[Sequence]()
        preemptions = self.stats.preemptions
        size = self.limits.block_size
        for sequence, tokens in wanted:
            if sequence.num_computed + tokens <= len(sequence.blocks) * size or self._reserve(sequence, tokens):
                rows.append(self._row(sequence, tokens))
                sequences.append(sequence)
        if self.waiting and self.stats.preemptions == preemptions:  # else what was just preempted would come and go
            self._admit_waiting(step, sequences)
        if not rows:
            return None
        if not all(row.decodes for row in rows):
            order = sorted(range(len(rows)), key=lambda place: not rows[place].decodes)
            step.rows, sequences = [rows[place] for place in order], [sequences[place] for place in order]
        self._take_on(step, sequences)
        return step

    def _take_on(self, step: Step, sequences: list[Sequence]) -> None:
        """The step is on its way, row i for sequence i: what it computes counts as computed from here on."""
        for row, sequence in zip(step.rows, sequences, strict=True):
            sequence.num_computed = row.start + (1 if row.tokens is None else len(row.tokens))
            sequence.in_flight += 1
            if row.samples:
                sequence.num_pending += 1
                sequence.has_sampled = True
        self._in_flight.append((step, sequences))

    def _wanted(self) -> list[tuple[Sequence, int]]:
        """The running sequences that can go on, and how many tokens of each the budget allows."""
        able = []
        decoding = 0
        for sequence in self.running:
            longest = len(sequence.tokens) + sequence.num_pending - sequence.num_computed
            if longest and not (sequence.num_pending and self._must_wait(sequence)):
                if longest > 1:
                    longest = self._longest_row(sequence)
                able.append((sequence, longest))
                decoding += longest == 1
        return able if decoding == len(able) else self._within_budget(able, decoding)

    def _within_budget(self, able: list[tuple[Sequence, int]], decoding: int) -> list[tuple[Sequence, int]]:
        """How many of the tokens that each could compute fit in the step, `decoding` of them having one."""
        budget = self.limits.max_tokens_per_step - decoding  # a long prompt never starves those who generate
        paced = self._paced_tokens(beside=decoding)
        wanted = []
        for sequence, longest in able:
            tokens = longest
            if longest > 1:
                tokens = min(longest, budget, paced) if sequence.paced else min(longest, budget)
                budget -= tokens
                paced -= tokens if sequence.paced else 0
            if tokens:
                wanted.append((sequence, tokens))
        return wanted

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
        if not sequence.num_pending:
            return False
        params = sequence.request.params
        return (
            sequence.length >= sequence.limit
            or params.grammar is not None
            or any(len(word) > 1 for word in params.bad_words)
        )

    def complete(self, step: Step, results: list[RowResult], seconds: float = 0.0) -> list[TokenOutput]:
        """Take in a step's results; returns what the clients get. Sequences that ended meanwhile get nothing.

        Raises ValueError for another step than the first of those in flight.
        """
        if not self._in_flight or self._in_flight[0][0] is not step:
            raise ValueError("steps are completed in the order in which they were planned")
        _, sequences = self._in_flight.popleft()
        outputs = []
        generated = 0
        for row, result, sequence in zip(step.rows, results, sequences, strict=True):
            sequence.in_flight -= 1
            if row.samples:
                sequence.num_pending -= 1
            if sequence.status is RUNNING:
                output = self._advance(sequence, row, result)
                if output is not None:
                    outputs.append(output)
                    generated += len(output.token_ids)
        if self._leaving:
            self._let_go()
        self.stats.generation_tokens += generated
        if self._pace is not None:
            self._pace.note(step, seconds)
        self.stats.steps += 1
        self.stats.step_tokens, self.stats.step_seconds = step.num_tokens, seconds
        return outputs

    def snapshot(self) -> EngineStats:
        """The counts as they are now."""
        self.stats.running, self.stats.waiting = self.num_running, len(self.waiting)
        self.stats.blocks_used = self.pool.num_blocks - self.pool.num_free
        return self.stats

    def check(self) -> None:
        """Raise RuntimeError unless blocks, slots and counts agree. For tests and idle moments."""
        holders = self.running + self._leaving
        self.pool.check(sequence.blocks for sequence in holders)
        if any(sequence.blocks or sequence.slot != NO_SLOT for sequence in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks or a slot")
        slots = sorted(self._free_slots + [sequence.slot for sequence in holders])
        if slots != list(range(self.limits.max_sequences)):
            raise RuntimeError("a slot is lost or held twice")
        if any(sequence.in_flight == 0 for sequence in self._leaving):
            raise RuntimeError("a sequence that has ended holds blocks for no step")
        known = sum(len(sequences) for sequences in self._choices.values())
        if known != len(self.waiting) + len(self.running):
            raise RuntimeError("a sequence is in no queue, or in two")

    def _lacks_blocks(self, wanted: list[tuple[Sequence, int]]) -> bool:
        """Whether there are too few free blocks for these tokens."""
        most = len(wanted) + self._blocks_for(self.limits.max_tokens_per_step)  # a row begins one more than it fills
        free = self.pool.num_free
        return most > free and sum(self._missing_blocks(*each) for each in wanted) > free

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        """How many blocks a running sequence lacks to compute its next `tokens`."""
        return max(0, self._blocks_for(sequence.num_computed + tokens) - len(sequence.blocks))

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for a running sequence's next `tokens`, taken from younger ones if need be.

        False when the sequence itself was the youngest and had to go, or has gone already.
        """
        if sequence.status is not Status.RUNNING:
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
        sequence.num_computed = sequence.num_indexed = 0
        sequence.prompt_logprobs.clear()
        insort(self.waiting, sequence, key=_order)
        self.stats.preemptions += 1

    def _admit_waiting(self, step: Step, sequences: list[Sequence]) -> None:
        """Start waiting sequences, the first in order first; none overtakes one that only lacks blocks.

        `sequences` are those of the step's rows so far.
        """
        budget = self._unplanned(step)
        paced = self._paced_tokens(beside=sum(row.decodes for row in step.rows))
        for row, sequence in zip(step.rows, sequences, strict=True):
            paced -= row.count if sequence.paced and not row.decodes else 0
        for sequence in list(self.waiting):
            if budget <= 0 or not self._free_slots:
                return
            if paced <= 0 and len(sequence.tokens) > self.limits.max_tokens_per_step:
                continue  # another long prompt takes what there is for them
            donor = self._donor(sequence)
            if donor is not None and donor.num_computed < donor.num_prompt:
                continue  # its sibling is still computing the prompt that both share
            if not self._start(sequence, donor, step):
                return
            tokens = min(self._longest_row(sequence), budget)
            if sequence.paced:
                tokens = min(tokens, paced)
                paced -= tokens
            budget -= tokens
            step.rows.append(self._row(sequence, tokens, admitted=True))
            sequences.append(sequence)

    def _unplanned(self, step: Step) -> int:
        """How many tokens a step has room for beside its rows."""
        return self.limits.max_tokens_per_step - step.num_tokens

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """A running choice of the same request, whose prompt blocks can be shared."""
        if sequence.request.params.n == 1:
            return None
        siblings = self._choices[sequence.request.request_id]
        return next((other for other in siblings if other.status is Status.RUNNING), None)

    def _start(self, sequence: Sequence, donor: Sequence | None, step: Step) -> bool:
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
            step.copies.append((source, sequence.blocks[len(shared)]))
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
        sequence.has_sampled = False
        sequence.num_uploaded = 0
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
            end == len(sequence.tokens) + sequence.num_pending and sequence.limit > sequence.num_prompt,
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
        if end % self.limits.block_size == 0 or row.tokens is not None:
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
        elif result.logprobs is None and row.targets is None:  # nearly every token: there is nothing more to say
            cached, scheduled_at = sequence.num_cached, sequence.scheduled_at or 0.0
            return TokenOutput(request.request_id, sequence.index, [token], None, None, None, cached, scheduled_at)
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
            self._leaving.append(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.scheduled_at is None:
            self.admission.started(sequence.request, sequence.index)
        sequence.status = Status.FINISHED
        siblings = self._choices[sequence.request.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._choices[sequence.request.request_id]
        self._let_go()

    def _let_go(self) -> None:
        """Free what ended sequences hold and no step in flight uses any more."""
        for sequence in [sequence for sequence in self._leaving if not sequence.in_flight]:
            self._leaving.remove(sequence)
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

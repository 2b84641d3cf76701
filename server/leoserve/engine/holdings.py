"""Who waits and who runs, and what the running ones hold: a slot each, and blocks of the cache.

A sequence that waits gets a slot and blocks for all its tokens, or nothing. What one that ends holds is given back once
no step in flight knows of it.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.draft import Draft
from leoserve.engine.limits import SchedulerLimits
from leoserve.engine.request import EngineStats, Request
from leoserve.engine.sequence import NO_SLOT, Sequence, Status
from leoserve.model.step import Step

if TYPE_CHECKING:
    from leoserve.model.grammar import CompiledGrammar

RUNNING = Status.RUNNING  # an enum's member takes longer to look up than all else that is asked of it


class Holdings:
    """All sequences there are, in queues, with their slots and blocks, and the steps that are in flight."""

    def __init__(
        self, limits: SchedulerLimits, pool: BlockPool, admission: Admission, clock: Callable[[], float]
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.admission = admission
        self.stats = EngineStats(blocks_total=pool.num_blocks)
        self._clock = clock
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
            Sequence(request, index, next(self._serial), list(request.prompt), limit)
            for index in range(request.params.n)
        ]
        if grammar is not None:
            for sequence in sequences:
                sequence.grammar = grammar.answer()
        self._choices[request.request_id] = sequences
        for sequence in sequences:
            insort(self.waiting, sequence, key=_order)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, in whatever state. Unknown ids are ignored."""
        for sequence in list(self._choices.get(request_id, ())):
            if index is None or sequence.index == index:
                self._end(sequence)

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot and are not at their end."""
        return len(self.running)

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

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        """How many blocks a running sequence lacks to compute its next `tokens`."""
        return max(0, self._blocks_for(sequence.num_computed + tokens) - len(sequence.blocks))

    def _blocks_for(self, length: int) -> int:
        return -(-length // self.limits.block_size)

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

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """A running choice of the same request, whose prompt blocks can be shared."""
        if sequence.request.params.n == 1:
            return None
        siblings = self._choices[sequence.request.request_id]
        return next((other for other in siblings if other.status is RUNNING), None)

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
        sequence.status = RUNNING
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
        if sequence.status is RUNNING:
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


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order

"""The masks of a step's answers: which tokens their grammars let come next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import llguidance
import numpy as np
from numpy.typing import NDArray

from leokernels import native
from leoserve.model.grammar import Answer, CompiledGrammar, Mask, Matcher, Words
from leoserve.model.parsers import Follower

Startable = Answer | CompiledGrammar


class Moving:
    """Matchers that a follower moves on, and whose masks it makes. Nobody else may use them until `ended`."""

    def __init__(
        self,
        follower: Follower,
        rows: list[int],
        matchers: list[Matcher],
        jobs: NDArray[np.void],
        whole: set[Matcher],
    ) -> None:
        """The rows and their matchers. `jobs`: as leokernels.native.Follower takes them. `whole`: gets those that turn
        out to be at their end.
        """
        self.matchers = matchers
        self._whole = whole
        self._follower = follower
        self._rows = rows
        self._ended: list[int] | None = None
        follower.begin(jobs)

    def ended(self, *, wait: bool) -> list[int]:
        """The rows after whose tokens nothing can follow. None of them, unless it may `wait`, if it had to."""
        if self._ended is None:
            numbers = self._follower.ended(wait=wait)
            if numbers is None:
                return []
            for number in numbers:
                self.matchers[number].whole = True
                self._whole.add(self.matchers[number])
            self._ended = [self._rows[number] for number in numbers]
            self.matchers = []
        return self._ended

    def __del__(self) -> None:
        if self._ended is None:
            self._follower.ended(wait=True)  # what it writes to may go now


class Masks:
    """The masks of a step's answers, made while the engine's thread does something else.

    Where a device computes the step they are made meanwhile, in other threads. Where the processor does it itself, all
    its cores are at work then; but between two steps only the engine's thread is, and the kernels' other threads move
    the matchers on and make the masks. Where there are no such threads it is done at once.
    """

    def __init__(self, slots: int, vocab: int, *, aside: bool) -> None:
        self.vocab = vocab
        self._slots = slots
        self._aside = aside
        self.matchers: dict[int, Matcher] = {}  # by slot, of those that follow a grammar
        self._words: Words = np.zeros((slots, 0), dtype=np.int32)  # as wide as the tokenizer is, once that is known
        self._masks: list[Mask] = []  # by slot
        self._places = np.full(slots, -1)  # by slot, the row of its words; -1: it has none
        self._whole: set[Matcher] = set()  # of these, whose answers a follower has found to be at their end
        self._step: Sequence[int] = ()  # the slots that were begun last
        self._rows: list[int] = []  # of these, which follow a grammar
        self._here: list[Matcher] = []  # and theirs
        self._where = np.zeros(0, np.int64)  # and their slots
        self._of_rows: native.RowMasks | None = None
        self._jobs = np.zeros(slots, native.FOLLOW)  # by slot, what is the same in every step
        self._are_made = False  # or on their way, the masks of these
        self._executor: llguidance.LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._filling: Future[None] | None = None
        self._filled: list[tuple[llguidance.LLMatcher, int]] = []
        self._moving: Moving | None = None

    def set_slot(self, slot: int, grammar: Startable | None, generated: Sequence[int] = ()) -> None:
        """Give `slot` to an answer that has generated so much; None: it follows no grammar."""
        self._step, self._are_made = (), False
        left = self.matchers.pop(slot, None)
        if left is not None or grammar is not None:
            self.settle()  # what is moving may be what leaves, or what comes back
            self._places[slot] = -1
        if left is not None:
            self._whole.discard(left)
        if grammar is not None:
            self.matchers[slot] = matcher = grammar.start(generated)
            self._places[slot] = slot
            if matcher.whole:
                self._whole.add(matcher)

    def rows(self, slots: Sequence[int]) -> list[int]:
        """The places in `slots` of those that follow a grammar."""
        if not self.matchers:
            return []
        if slots != self._step:  # as a rule they are those of the step before
            self._step, self._are_made = slots, False
            self._rows = [row for row, slot in enumerate(slots) if slot in self.matchers]
            self._here = [self.matchers[slots[row]] for row in self._rows]
            self._where = np.array([slots[row] for row in self._rows])
            self._of_rows = None
        return self._rows

    def begin(self, slots: Sequence[int]) -> None:
        """The masks of these slots will be needed. Until `words` nobody may use their matchers."""
        if not self.rows(slots) or self._are_made:
            return
        if not self._words.shape[1]:  # most servers never need them
            self._words = np.zeros((self._slots, self._here[0].words), dtype=np.int32)
            self._masks = [Mask(row) for row in self._words]
        moving = set(self._moving.matchers) if self._moving is not None else ()
        self._filled = []
        for row, matcher in zip(self._rows, self._here, strict=True):
            slot = slots[row]
            if matcher not in moving or matcher.mask is not self._masks[slot]:
                self._make(slot, matcher)
        if self._filled:
            self._start(self._filled)
        self._are_made = not self._aside

    def _make(self, slot: int, matcher: Matcher) -> None:
        """Make the mask, or have it made."""
        self.settle()  # one that has left this slot may still be writing to it
        if matcher.failed:
            self._words[slot] = 0  # of an answer that cannot go on nothing is allowed
        elif self._aside:
            self._filled.append((cast("llguidance.LLMatcher", matcher.parser), slot))
        else:
            matcher.keep(self._masks[slot])
            if matcher.follower is not None:
                self._jobs[slot] = matcher.follower.address_of(matcher.parser), *self._masks[slot].place, 0, 0

    def _start(self, rows: list[tuple[llguidance.LLMatcher, int]]) -> None:
        if self._executor is None or self._thread is None:
            self._executor, self._thread = llguidance.LLExecutor(), ThreadPoolExecutor(1, "masks")
        fill, (at, size) = self._executor.unsafe_compute_mask_ptr, self._masks[0].place
        self._filling = self._thread.submit(fill, rows, at, size, len(self._words))

    def advance(self, slots: Sequence[int], tokens: Mapping[int, int]) -> tuple[list[int], Moving | None]:
        """Have the matchers of these slots take the tokens that were chosen, by row; others of the step have failed.

        The rows whose grammars allow nothing after that, if it is known at once; else none, and what will tell.
        """
        self.settle()
        rows, matchers, where = self._rows, self._here, self._where
        if len(tokens) < len(rows):
            self._are_made = False
            rows, where = [*tokens], np.array([slots[row] for row in tokens])
            matchers = [self.matchers[slots[row]] for row in rows]
        follower = matchers[0].follower if matchers else None
        if follower is None:
            for matcher, token in zip(matchers, tokens.values(), strict=True):
                matcher.advance(token)
            return [row for row, matcher in zip(rows, matchers, strict=True) if matcher.complete], None
        for matcher in matchers:
            matcher.taken += 1
        jobs = self._jobs[where]
        jobs["token"] = [*tokens.values()]
        self._moving = Moving(follower, rows, matchers, jobs, self._whole)
        return [], self._moving

    def settle(self) -> None:
        """Wait until no matcher is moving any more."""
        if self._moving is not None:
            self._moving.ended(wait=True)
            self._moving = None

    def words(self) -> Words:
        """[slots, W]: id i may come next in a slot if bit `i % 32` of word `i // 32` is set. Waits for the masks."""
        self.settle()
        if self._filling is not None:
            self._filling.result()
            self._filling = None
            for parser, slot in self._filled:
                if parser.is_error():
                    self._words[slot] = 0
        return self._words

    def whole(self, slots: Sequence[int], rows: Iterable[int]) -> list[int]:
        """Of these rows those whose answers were at their end before this step."""
        if not self._whole:
            return []
        return [row for row in rows if self.matchers[slots[row]].whole]

    def of_rows(self, slots: Sequence[int]) -> native.RowMasks:
        """`words`, and for each of these slots the row that is about it, if it follows a grammar."""
        self.rows(slots)
        words = self.words()
        if self._of_rows is None:
            self._of_rows = native.RowMasks(self._places[np.array(slots)], words)
        return self._of_rows

    def fault(self, slot: int) -> str | None:
        """Why the slot's grammar cannot be followed on, if so; its answer is then to be ended."""
        matcher = self.matchers.get(slot)
        if matcher is None or (why := matcher.error) is None:
            return None
        matcher.give_up()
        return why

    def allowed_flags(self, slot: int) -> NDArray[np.bool_]:
        """[vocab]: what may come next in a slot, a flag for each id."""
        bits = np.unpackbits(self.words()[slot].view(np.uint8), bitorder="little")[: self.vocab].view(np.bool_)
        flags = np.zeros(self.vocab, dtype=np.bool_)  # rows of the network that have no token stay out
        flags[: len(bits)] = bits
        return flags

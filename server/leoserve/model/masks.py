"""The masks of a step's answers: which tokens their grammars let come next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import llguidance
import numpy as np
from numpy.typing import NDArray

from leoserve.model.grammar import Answer, CompiledGrammar, Mask, Matcher, Words
from leoserve.model.parsers import Follower

Startable = Answer | CompiledGrammar


class Moving:
    """Matchers that a follower moves on, and whose masks it makes. Nobody else may use them until `ended`."""

    def __init__(self, follower: Follower, rows: dict[int, Matcher], places: list[tuple[int, int, int, int]]) -> None:
        self.matchers = set(rows.values())
        self._follower = follower
        self._rows = [*rows.items()]
        self._ended: list[int] | None = None
        follower.begin(places)

    def ended(self, *, wait: bool) -> list[int]:
        """The rows after whose tokens nothing can follow. None of them, unless it may `wait`, if it had to."""
        if self._ended is None:
            if not wait and not self._follower.is_done():
                return []
            ended = [self._rows[number] for number in self._follower.wait()]
            for _, matcher in ended:
                matcher.whole = True
            self._ended = [row for row, _ in ended]
            self.matchers = set()
        return self._ended

    def __del__(self) -> None:
        if self._ended is None:
            self._follower.wait()  # what it writes to may go now


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
        self._step: Sequence[int] = ()  # the slots that were begun last
        self._rows: list[int] = []  # of these, which follow a grammar
        self._are_made = False  # or on their way, the masks of these
        self._executor: llguidance.LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._filling: Future[None] | None = None
        self._filled: list[tuple[llguidance.LLMatcher, int]] = []
        self._moving: Moving | None = None

    def set_slot(self, slot: int, grammar: Startable | None, generated: Sequence[int] = ()) -> None:
        """Give `slot` to an answer that has generated so much; None: it follows no grammar."""
        self._step, self._are_made = (), False
        if grammar is None:
            if self.matchers.pop(slot, None) is not None:
                self._places[slot] = -1
            return
        self.settle()  # what is moving may be what comes back
        self.matchers[slot] = grammar.start(generated)
        self._places[slot] = slot

    def rows(self, slots: Sequence[int]) -> list[int]:
        """The places in `slots` of those that follow a grammar."""
        if slots != self._step:  # as a rule they are those of the step before
            self._step, self._are_made = slots, False
            self._rows = [row for row, slot in enumerate(slots) if slot in self.matchers] if self.matchers else []
        return self._rows

    def begin(self, slots: Sequence[int]) -> None:
        """The masks of these slots will be needed. Until `words` nobody may use their matchers."""
        here = [slots[row] for row in self.rows(slots)] if self.matchers else []
        if not here or self._are_made:
            return
        if not self._words.shape[1]:  # most servers never need them
            self._words = np.zeros((self._slots, self.matchers[here[0]].words), dtype=np.int32)
            self._masks = [Mask(row) for row in self._words]
        moving = self._moving.matchers if self._moving is not None else ()
        self._filled = []
        for slot in here:
            matcher = self.matchers[slot]
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
        self._are_made &= len(tokens) == len(self._rows)
        rows, places, follower = {}, [], None
        for row, token in tokens.items():
            rows[row] = matcher = self.matchers[slots[row]]
            if matcher.place is not None:
                places.append((*matcher.place, token))
                follower = matcher.follower
        if follower is None or len(places) < len(rows):
            for row, matcher in rows.items():
                matcher.advance(tokens[row])
            return [row for row, matcher in rows.items() if matcher.complete], None
        for matcher in rows.values():
            matcher.taken += 1
        self._moving = Moving(follower, rows, places)
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
        return [row for row in rows if self.matchers[slots[row]].whole]

    def rows_of_words(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of these slots the row of `words` that is about it, -1 where it follows no grammar."""
        return self._places[slots]

    def allowed_flags(self, slot: int) -> NDArray[np.bool_]:
        """[vocab]: what may come next in a slot, a flag for each id."""
        bits = np.unpackbits(self.words()[slot].view(np.uint8), bitorder="little")[: self.vocab].view(np.bool_)
        flags = np.zeros(self.vocab, dtype=np.bool_)  # rows of the network that have no token stay out
        flags[: len(bits)] = bits
        return flags

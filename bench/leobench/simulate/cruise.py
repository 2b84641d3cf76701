"""The server's scheduler, to which sequences that merely generate cost nothing.

A sequence *cruises* while all that it does is to compute one token a step. Until its last token it is out of the
scheduler's lists; what its token takes of the step's budget and its place among those that run are still counted, it
gets its blocks when they are due, and full ones are offered to the prefix cache. Then it is put back as it would be had
it been there all along, with its row in every step in flight. So each step costs the host only what is out of the
ordinary in it, and plans, results and cache are, to the block, those of the scheduler alone.

When nobody but those away is there, the loop *coasts*: it goes from step to step and nothing else happens.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from leoserve.engine.draft import Draft
from leoserve.engine.request import TokenOutput
from leoserve.engine.scheduler import Scheduler, Wanted
from leoserve.engine.sequence import Sequence
from leoserve.model.step import Result, Row, Step

WORTHWHILE = 2  # steps that a sequence can be away, at least
MOST_TURNS = 256  # of the loop that are looked ahead
ROWLESS = Step()


@dataclass(slots=True, eq=False)
class Cruise:
    """A sequence that is away, and since when."""

    sequence: Sequence
    planned: int  # steps planned when the sequence was last brought up to date
    completed: int  # steps completed then
    grows: bool  # whether the keys that it sees grow with every step; not once a window is full


class CruisingScheduler(Scheduler):
    """Needs to know the answers: `answer_of` a request's id gives the token ids that it will generate.

    For scheduling alone: requests of one choice that end at their length, and are never aborted. `stepped` is told how
    many tokens each completed step brought, `cruised` for which completed steps, from one to before another, a
    request's tokens came while it was away.
    """

    def __init__(
        self,
        *arguments: Any,
        answer_of: Callable[[str], list[int]],
        stepped: Callable[[int], None],
        cruised: Callable[[str, int, int], None],
        window: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._answer_of = answer_of
        self._stepped = stepped
        self._cruised = cruised
        self._window = window
        self._planned = 0
        self.completed = 0
        self._away: set[Cruise] = set()
        self._due: defaultdict[int, list[Cruise]] = defaultdict(list)  # by the number of the plan that needs them
        self._short: defaultdict[int, list[Cruise]] = defaultdict(list)  # by that of the plan that needs a block more
        self._full: defaultdict[int, list[Cruise]] = defaultdict(list)  # by that of the step that makes a block full
        self._growing = 0  # of those away
        self._growing_keys = 0  # that these see in the step planned last

    @property
    def num_running(self) -> int:
        return len(self.running) + len(self._away)

    @property
    def has_work(self) -> bool:
        return bool(self._away) or super().has_work

    @property
    def cruising(self) -> tuple[int, int, int]:
        """Rows of the step planned last that are in none of its lists, the keys that they attend to, and how many more
        they attend to in the next step."""
        full = len(self._away) - self._growing
        return len(self._away), self._growing_keys + full * (self._window or 0), self._growing

    def plan(self) -> Step | None:
        for cruise in self._due.pop(self._planned, ()):
            if cruise in self._away:
                self._come_back(cruise)
        self._lengthen()
        if self._away and self._scarce(0) and self._lacks_blocks(self._wanted()):
            self.come_back()  # somebody must go, and those who are away may be the ones
        step = super().plan()
        if step is None and self._away:
            step = Step()
            self._in_flight.append((step, []))
        if step is not None:
            self._planned += 1
            self._growing_keys += self._growing
        return step

    def complete(
        self,
        step: Step,
        results: Iterable[Result],
        seconds: float = 0.0,
        ended: Callable[[], Collection[int]] = tuple,
    ) -> list[TokenOutput]:
        self._offer()
        outputs = super().complete(step, results, seconds, ended)
        self._stepped(len(outputs) + len(self._away))
        self.completed += 1
        self.stats.generation_tokens += len(self._away)
        for sequence in list(self.running):
            self._leave(sequence)
        return outputs

    def coasting(self, ahead: int) -> int:
        """How many of the next turns of the loop plan a step of those alone that are away, and complete another.

        `ahead`: steps that the loop has in flight when it plans.
        """
        if (
            not self._away
            or len(self._in_flight) != ahead
            or self.running
            or self.waiting
            or self._leaving
            or (self._pace is not None and ahead)  # it would have to know when a step in flight was launched
            or any(step.rows for step, _ in self._in_flight)
        ):
            return 0
        turns = min(min(self._due) - self._planned, MOST_TURNS)
        crossings = (1 + turns // self.limits.block_size) * len(self._away)
        return 0 if self._scarce(crossings) else turns

    def coast(self, seconds: Iterable[float]) -> None:
        """Such turns, of which each completes a step that took so many seconds."""
        rows = len(self._away)
        turns = 0
        for took in seconds:
            if self._planned in self._short:
                self._lengthen()
            if self.completed in self._full:
                self._offer()
            self._stepped(rows)
            self._planned += 1
            self.completed += 1
            turns += 1
            if self._pace is not None:
                self._pace.note(ROWLESS, took)
        self._growing_keys += self._growing * turns
        self.stats.steps += turns
        self.stats.generation_tokens += rows * turns

    def come_back(self) -> None:
        """All that are away, as if none had ever been."""
        for cruise in list(self._away):
            self._come_back(cruise)
        for places in (self._due, self._short, self._full):
            places.clear()

    def _scarce(self, crossings: int) -> bool:
        """Whether a step could ask for more blocks than are free: one for each row, and for its whole budget.

        `crossings`: blocks beside these, for those away.
        """
        budget = self.limits.max_tokens_per_step // self.limits.block_size
        return len(self.running) + budget + crossings > self.pool.num_free

    def _lengthen(self) -> None:
        """Give blocks to those away who need one for the token that is planned next, in their order among all."""
        crossing = [cruise for cruise in self._short.pop(self._planned, ()) if cruise in self._away]
        if not crossing:
            return
        size = self.limits.block_size
        if self._scarce(len(crossing)) or any(each.num_computed >= len(each.blocks) * size for each in self.running):
            for cruise in crossing:
                self._come_back(cruise)  # the scheduler says who gets which block, and who has to go
            return
        for cruise in sorted(crossing, key=lambda cruise: cruise.sequence.order):
            cruise.sequence.blocks += self.pool.allocate(1)
            self._expect_crossing(cruise, 0)

    def _offer(self) -> None:
        """Offer the blocks to the prefix cache that those away make full with the step that is completed next."""
        for cruise in self._full.pop(self.completed, ()):
            if cruise in self._away:
                self._update(cruise)
                computed = cruise.sequence.num_computed - (self._planned - self.completed - 1)
                self._index_full_blocks(cruise.sequence, computed)

    def _expect_crossing(self, cruise: Cruise, place: int) -> None:
        """Note when a sequence makes its last block full, and needs another. `place`: in it, of its next token."""
        left = self.limits.block_size - place
        self._full[self._planned + left - 1].append(cruise)
        self._short[self._planned + left].append(cruise)

    def _within_budget(self, able: list[Sequence], longer: dict[Sequence, int], decoding: int) -> Wanted:
        return super()._within_budget(able, longer, decoding + len(self._away))

    def _paced_tokens(self, *, beside: int) -> int:
        return super()._paced_tokens(beside=beside + len(self._away))

    def _unplanned(self, draft: Draft) -> int:
        return super()._unplanned(draft) - len(self._away)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence out until something happens to it, if that is worthwhile."""
        steps = self._uneventful(sequence)
        if steps < WORTHWHILE:
            return
        places = [sequences.index(sequence) for _, sequences in self._in_flight]
        rows = [step.rows[place] for place, (step, _) in zip(places, self._in_flight, strict=True)]
        if any(row.tokens is not None for row in rows):
            return  # what is in flight is its prompt
        self.running.remove(sequence)
        for place, (step, sequences) in zip(places, self._in_flight, strict=True):
            del sequences[place], step.rows[place]
        grows = self._window is None or sequence.num_computed < self._window
        cruise = Cruise(sequence, self._planned, self.completed, grows)
        self._away.add(cruise)
        self._due[self._planned + steps].append(cruise)
        self._expect_crossing(cruise, sequence.num_computed % self.limits.block_size)
        self._growing += grows
        self._growing_keys += sequence.num_computed * grows

    def _uneventful(self, sequence: Sequence) -> int:
        """How many of the next plans would give a sequence one token to compute, and nothing else."""
        if sequence.num_uncomputed != 1 or not sequence.has_sampled or sequence.num_pending != len(self._in_flight):
            return 0
        if sequence.num_computed % self.limits.block_size == 0:
            return 0  # the next token needs a block
        steps = sequence.limit - 1 - sequence.length  # then comes the last token
        if self._window is not None and sequence.num_computed < self._window:
            steps = min(steps, self._window - sequence.num_computed)
        return steps

    def _come_back(self, cruise: Cruise) -> None:
        """Put a sequence back, with all that happened to it meanwhile."""
        sequence = cruise.sequence
        self._update(cruise)
        sequence.num_uploaded = len(sequence.blocks)
        self._away.remove(cruise)
        self._growing -= cruise.grows
        self._growing_keys -= sequence.num_computed * cruise.grows
        insort(self.running, sequence, key=_order)
        first = sequence.num_computed - len(self._in_flight)
        for number, (step, sequences) in enumerate(self._in_flight):
            place = self._place(step, sequences, sequence)
            sequences.insert(place, sequence)
            row = Row(sequence.slot, first + number, None, sequence.num_uploaded, [], samples=True, decodes=True)
            step.rows.insert(place, row)

    def _update(self, cruise: Cruise) -> None:
        """Let a sequence know what was computed and generated while it was away."""
        sequence = cruise.sequence
        done = self.completed - cruise.completed
        generated = sequence.num_generated
        sequence.tokens += self._answer_of(sequence.request.request_id)[generated : generated + done]
        sequence.num_computed += self._planned - cruise.planned
        self._cruised(sequence.request.request_id, cruise.completed, self.completed)
        cruise.planned, cruise.completed = self._planned, self.completed

    @staticmethod
    def _place(step: Step, sequences: list[Sequence], sequence: Sequence) -> int:
        """Where a row that decodes belongs in a step: in the order of those that do."""
        for place, (row, other) in enumerate(zip(step.rows, sequences, strict=True)):
            if not row.decodes or other.order > sequence.order:
                return place
        return len(sequences)


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order

"""The engine's loop: take in what arrived, plan a step, launch it, hand out what the one before brought.

With `ahead` 1 the next step is planned and launched while the device computes the one before, so that the device never
waits for the host. With 0 a step's results are there before the next is planned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, Protocol

from leoserve.engine.request import Abort, Refused, Request, StepOutputs
from leoserve.engine.scheduler import Scheduler
from leoserve.model.grammar import CompiledGrammar
from leoserve.model.step import Computed, Result, RowResult, Step, Unrecoverable

log = logging.getLogger("leoserve.engine")


@dataclass(frozen=True, slots=True)
class Constrained:
    """A request whose grammar has been compiled."""

    request: Request
    grammar: CompiledGrammar


ToLoop = Request | Constrained | Abort


class LaunchedStep(Protocol):
    """A step that is being computed, or has been."""

    def results(self) -> Sequence[Result]:
        """Wait for the step. Row by row what it brought, in the order of `step.rows`."""
        ...

    def ended(self, *, wait: bool) -> Sequence[int]:
        """More rows, by number, after whose tokens their grammars allow nothing.

        What takes a while to find out is told here rather than in `results`: as a rule it is known by the time that the
        next step is planned. Where it is not, and nobody is to `wait`, the next step's results say it.
        """
        ...


class StepRunner(Protocol):
    """Computes steps in the order of their launches. A row's failure is in its result.

    What `launch` raises is the failure of that step, which then has changed nothing that launching its rows again would
    not change in the same way. `Unrecoverable`, and what `results` raises, are the end of the engine.
    """

    def launch(self, step: Step) -> LaunchedStep: ...


class EngineLoop:
    """Drives a scheduler and a runner. `submit` may be called from any thread, everything else from one."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        send: Callable[[StepOutputs | Refused], None],
        *,
        ahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ahead`: how many steps may be in flight when the next is planned. `clock`: seconds, to measure steps."""
        self.scheduler = scheduler
        self.runner = runner
        self.ahead = ahead
        self._clock = clock
        self._send = send
        self._launched: deque[tuple[Step, LaunchedStep, float]] = deque()
        self._completed: LaunchedStep | None = None  # the last, until all is known of it
        self._inbox: deque[ToLoop] = deque()
        self._arrived = threading.Condition()

    def submit(self, message: ToLoop) -> None:
        """Hand over an admitted request, or an abort. Wakes the loop if it is idle."""
        with self._arrived:
            self._inbox.append(message)
            self._arrived.notify()

    def run(self) -> NoReturn:
        """Steps while there is work, asleep while there is none."""
        while True:
            self.receive(wait=not self.scheduler.has_work)
            if not self.step():
                self._send(StepOutputs([], self.scheduler.snapshot()))  # an abort may have emptied the queues

    def receive(self, *, wait: bool = False) -> None:
        """Take in what has arrived; with `wait`, at least one message."""
        with self._arrived:
            if wait:
                self._arrived.wait_for(lambda: self._inbox)
            messages, self._inbox = self._inbox, deque()
        for message in messages:
            if isinstance(message, Abort):
                self.scheduler.abort(message.request_id, message.index)
            elif isinstance(message, Constrained):
                self._add(message.request, message.grammar)
            else:
                self._add(message)

    def step(self) -> bool:
        """Plan and launch the next step, then hand out the oldest one's results. False when there was nothing to do."""
        self._end_answers()
        step = self.scheduler.plan()
        if step is not None:
            begin = self._clock()
            self._launched.append((step, self._launch(step), begin))
        if step is None or len(self._launched) > self.ahead:
            return self._finish_oldest()
        return True

    def _finish_oldest(self) -> bool:
        """Wait for the step that was launched first and hand out what it brought. False when none is in flight."""
        if not self._launched:
            return False
        step, launched, begin = self._launched.popleft()
        results = launched.results()
        outputs = self.scheduler.complete(step, results, self._clock() - begin, partial(launched.ended, wait=True))
        self._completed = launched
        self._send(StepOutputs(outputs, self.scheduler.snapshot()))
        return True

    def _end_answers(self) -> None:
        """Those that are whole by what has become known of the step that was completed last."""
        ended = self._completed.ended(wait=False) if self._completed is not None else ()
        self._completed = None
        if ended:
            self._send(StepOutputs(self.scheduler.end(ended), self.scheduler.snapshot()))

    def _add(self, request: Request, grammar: CompiledGrammar | None = None) -> None:
        try:
            self.scheduler.add(request, grammar)
        except ValueError as error:  # a client's mistake must not end the engine
            for index in range(request.params.n):
                self.scheduler.admission.started(request, index)
            self._send(Refused(request.request_id, "never_fits", str(error)))

    def _launch(self, step: Step) -> LaunchedStep:
        """Launch a step; if it fails as a whole, row by row, so that only the rows at fault lose their sequences.

        Rows can be computed again: keys and values are written to the same places, and a sampler that fails has taken
        note of nothing.
        """
        try:
            return self.runner.launch(step)
        except Unrecoverable:
            raise
        except Exception:
            log.exception("a step of %d rows failed; computing them one by one", len(step.rows))
        parts: list[LaunchedStep] = []
        copies = step.copies  # for the first row that can be launched: the others find the blocks copied
        for row in step.rows:
            try:
                parts.append(self.runner.launch(Step([row], copies)))
                copies = []
            except Unrecoverable:
                raise
            except Exception as error:
                log.exception("a row at position %d failed", row.start)
                failed = RowResult(error=f"the engine could not compute this request: {type(error).__name__}")
                parts.append(Computed([failed]))
        return OneByOne(parts)


class OneByOne:
    """A step that was launched row by row."""

    def __init__(self, parts: list[LaunchedStep]) -> None:
        self._parts = parts

    def results(self) -> Sequence[Result]:
        return [result for part in self._parts for result in part.results()]

    def ended(self, *, wait: bool) -> Sequence[int]:
        return [number for number, part in enumerate(self._parts) if part.ended(wait=wait)]

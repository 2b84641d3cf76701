"""The engine's loop: take in what arrived, plan a step, run it, hand out what it brought."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Protocol

from leoserve.engine.request import Abort, Refused, Request, StepOutputs, ToEngine
from leoserve.engine.scheduler import Scheduler
from leoserve.model.step import RowResult, Step

log = logging.getLogger("leoserve.engine")


class StepRunner(Protocol):
    """Computes steps. A row's failure is in its result; what is raised is the step's failure."""

    def run(self, step: Step) -> list[RowResult]: ...


class EngineLoop:
    """Drives a scheduler and a runner. `submit` may be called from any thread, everything else from one."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner, send: Callable[[StepOutputs | Refused], None]) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._send = send
        self._inbox: deque[ToEngine] = deque()
        self._arrived = threading.Condition()

    def submit(self, message: ToEngine) -> None:
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
            else:
                self._add(message)

    def step(self) -> bool:
        """Plan and run one step. False when there was nothing to compute."""
        step = self.scheduler.plan()
        if step is None:
            return False
        begin = time.monotonic()
        results = self._run(step)
        outputs = self.scheduler.complete(step, results, time.monotonic() - begin)
        self._send(StepOutputs(outputs, self.scheduler.snapshot()))
        return True

    def _add(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except ValueError as error:  # a client's mistake must not end the engine
            for index in range(request.params.n):
                self.scheduler.admission.started(request, index)
            self._send(Refused(request.request_id, "never_fits", str(error)))

    def _run(self, step: Step) -> list[RowResult]:
        """Run a step; if it fails as a whole, row by row, so that only the rows at fault lose their sequences.

        Rows can be computed again: keys and values are written to the same places, and a sampler that fails has taken
        note of nothing.
        """
        try:
            return self.runner.run(step)
        except Exception:
            log.exception("a step of %d rows failed; computing them one by one", len(step.rows))
        results = []
        for row in step.rows:
            try:
                results += self.runner.run(Step([row], step.copies))  # copied again, blocks hold the same
            except Exception as error:
                log.exception("a row at position %d failed", row.start)
                results.append(RowResult(error=f"the engine could not compute this request: {type(error).__name__}"))
        return results

"""Replicas behind a router, in simulated time.

Everything happens in the order of time. A replica that is in the middle of a step takes in what came meanwhile when the
step is over, as the server's loop does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from operator import attrgetter

from leobench.records import RequestRecord, ServerSample
from leobench.simulate.replica import Answer, Replica
from leobench.simulate.routing import Router
from leobench.simulate.tokens import answer_ids, prompt_ids
from leobench.workloads import Planned

ERRORS = {"overloaded": "http 429", "never_fits": "http 400"}
REFUSAL = 2e-3  # seconds until a client knows that it was refused
MOST_SAMPLES = 1000  # of each replica; when there are as many, every other one goes

READY = attrgetter("ready")
Action = Callable[[float], None]  # is given the time


class Cluster:
    """Replicas, what is yet to happen to them, and what was seen of them."""

    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self.replicas = replicas
        self.records: list[RequestRecord] = []
        self.samples: list[ServerSample] = []
        self._router = router
        self._events: list[tuple[float, int, Action]] = []  # a heap
        self._serial: Iterator[int] = count()
        self._outstanding = [0] * len(replicas)
        self._ends: dict[Answer, Action] = {}
        self._sample_every = 0.05

    def at(self, when: float, action: Action) -> None:
        """Something that is to happen."""
        heapq.heappush(self._events, (when, next(self._serial), action))

    def run(self) -> float:
        """Until nothing is left to happen; the seconds until the last answer's end."""
        self.at(0.0, self._sample)
        while True:
            first = min(self.replicas, key=READY)
            until = self._events[0][0] if self._events else math.inf
            if self._events and until <= first.ready:
                when, _, action = heapq.heappop(self._events)
                action(when)
            elif first.busy:
                for answer in first.advance(until):
                    self.at(answer.token_times[-1], self._ends.pop(answer))
            else:
                break
        self.records.sort(key=lambda record: record.intended)
        for index, record in enumerate(self.records):
            record.index = index
        return max((record.ended for record in self.records), default=0.0)

    def send(self, planned: Planned, when: float, done: Action) -> None:
        """A request leaves its client at `when`; `done` is called at its end."""
        place = self._router.choose(planned, self._outstanding)
        self._outstanding[place] += 1
        number = len(self.records)
        record = RequestRecord(
            index=number,
            intended=when,
            sent=when,
            ended=when,
            prompt_tokens=planned.prompt_tokens,
            group=planned.group,
            session=planned.session,
            turn=planned.turn,
            url=place,
        )
        self.records.append(record)
        replica = self.replicas[place]

        def arrive(now: float) -> None:
            answer = replica.submit(number, prompt_ids(planned), answer_ids(planned), now)
            if answer.refused is None:
                self._ends[answer] = lambda ended: end(ended, answer)
            else:
                record.error = ERRORS[answer.refused]
                self.at(now + REFUSAL, lambda ended: end(ended, answer))

        def end(now: float, answer: Answer) -> None:
            self._outstanding[place] -= 1
            _fill(record, answer, now)
            done(now)

        self.at(when + replica.setup.frontend.request, arrive)

    def _sample(self, now: float) -> None:
        """Note how every replica is, and come again while there is something else to happen."""
        for place, replica in enumerate(self.replicas):
            replica.settle(now)
            stats = replica.scheduler.snapshot()
            sample = ServerSample(
                time=now,
                running=stats.running,
                waiting=stats.waiting,
                cache_usage=stats.blocks_used / stats.blocks_total,
                prompt_tokens=stats.prompt_tokens + stats.cached_tokens,
                generation_tokens=stats.generation_tokens,
                cached_tokens=stats.cached_tokens,
                preemptions=stats.preemptions,
                url=place,
            )
            self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES * len(self.replicas):
            count = len(self.replicas)
            self.samples = [sample for turn, sample in enumerate(self.samples) if turn // count % 2 == 0]
            self._sample_every *= 2
        if self._events or any(replica.busy for replica in self.replicas):
            self.at(now + self._sample_every, self._sample)


def _fill(record: RequestRecord, answer: Answer, now: float) -> None:
    """What a client knows of an answer at its end."""
    record.ended = now
    if record.error is not None:
        return
    record.first, record.last = answer.token_times[0], answer.token_times[-1]
    record.chunk_times = answer.token_times
    record.prompt_tokens, record.cached_tokens = answer.prompt_tokens, answer.cached
    record.output_tokens = len(answer.token_times)
    record.finish_reason = "length"

"""One server in simulated time: the real loop, scheduler, cache and admission around a device that only takes time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from leobench.simulate.cruise import CruisingScheduler
from leobench.simulate.work import Cost, CostModel, Work, work_of
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Refused, Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import SchedulerLimits
from leoserve.model.step import Result, Row, RowResult, Step


@dataclass(slots=True)
class Clock:
    """A replica's time: what its host has come to, and when its device will have done all that was launched."""

    now: float = 0.0
    device_free: float = 0.0

    def launch(self, cost: Cost) -> float:
        """The host plans and launches a step, and the device begins with the first kernel. When it will be done."""
        self.now += cost.plan
        begin = max(self.now, self.device_free)
        self.now += cost.launch
        self.device_free = max(begin + cost.device, self.now)
        return self.device_free


class Moment(NamedTuple):
    """What a clock says after a turn of the loop, and when the step in flight will be done, if one is."""

    now: float
    device_free: float
    in_flight: float


NOW = attrgetter("now")


class Device:
    """A runner that computes nothing, in the time that a cost model says."""

    def __init__(
        self, model: CostModel, clock: Clock, cruising: Callable[[], tuple[int, int, int]], *, window: int | None
    ) -> None:
        """`cruising`: rows and keys of the step to launch that are not in it, and how many keys more the next one has.
        `window`: keys that a query sees.
        """
        self._model = model
        self._clock = clock
        self._cruising = cruising
        self._window = window
        self._last: Launched
        self._slots: dict[int, tuple[int, list[int]]] = {}  # tokens of the sequence's prompt, and its answer
        self.answers: dict[int, list[int]] = {}  # by the seed of a request, which is its number here

    def launch(self, step: Step) -> Launched:
        """The device is done when it can be."""
        for row in step.rows:
            if row.admitted is not None:
                self._slots[row.slot] = len(row.admitted.prompt), self.answers[row.admitted.params.seed]
        rows, keys, _ = self._cruising()
        cost = self._model.cost(work_of(step, self._window, rows=rows, keys=keys))
        self._last = Launched(self, step, self._clock.launch(cost))
        return self._last

    def foresee(self, turns: int, ahead: int, until: float) -> list[Moment]:
        """The next turns of the loop that are about rows alone that cruise, as far as the first at or after `until`.

        `ahead`: steps in flight when the next is planned; what is waited for is the one before, or the step itself.
        """
        clock = Clock(self._clock.now, self._clock.device_free)
        rows, keys, growth = self._cruising()
        waited_for = self._last.done
        moments: list[Moment] = []
        while len(moments) < turns and clock.now < until:
            keys += growth
            done = clock.launch(self._model.cost(Work(rows, keys, (), rows)))
            if ahead:
                waited_for, done = done, waited_for
            clock.now = max(clock.now, done)
            moments.append(Moment(clock.now, clock.device_free, waited_for))
        return moments

    def pass_by(self, moments: list[Moment]) -> Iterator[float]:
        """Go through moments that were foreseen; of each turn the seconds."""
        clock = self._clock
        for moment in moments:
            seconds = moment.now - clock.now
            clock.now, clock.device_free, self._last.done = moment
            yield seconds

    def results(self, step: Step, done: float) -> list[Result]:
        """What a step brought, once it is `done`."""
        self._clock.now = max(self._clock.now, done)
        return [self._token(row) if row.samples else RowResult() for row in step.rows]

    def _token(self, row: Row) -> int:
        prompt, answer = self._slots[row.slot]
        return answer[row.start + row.count - prompt]


@dataclass(slots=True)
class Launched:
    """A step that is done at a known time. Its rows are looked at then, for some may have left or come back."""

    device: Device
    step: Step
    done: float

    def ended(self, *, wait: bool) -> Sequence[int]:
        return ()

    def results(self) -> list[Result]:
        return self.device.results(self.step, self.done)


@dataclass(slots=True, eq=False)
class Answer:
    """What a replica has to say about one request."""

    prompt_tokens: int
    token_times: list[float] = field(default_factory=list)  # when each left the server
    cached: int = 0  # tokens of the prompt
    refused: str | None = None  # the kind of the refusal


@dataclass(frozen=True, slots=True)
class Frontend:
    """The API process, between clients and the engine: one core, and one thing after the other.

    request: seconds from a request's arrival until the engine has it
    token: seconds of work for each token that goes out
    """

    request: float = 0.0
    token: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A server's own bounds, and how it was started."""

    limits: SchedulerLimits
    num_blocks: int
    ahead: int  # steps that may be in flight when the next is planned
    window: int | None = None
    max_waiting: int = 1024
    max_waiting_tokens: int = 4_000_000
    frontend: Frontend = Frontend()


class Replica:
    """A server. Requests are submitted in the order of time; `advance` is a turn of its loop.

    While all sequences merely generate, what comes is known for many turns: `advance` then only foresees it, and it
    comes to pass when somebody asks, or as far as something else happens.
    """

    def __init__(self, model: CostModel, setup: Setup) -> None:
        self.setup = setup
        self.clock = Clock()
        self.ready = math.inf  # until then it is known what happens here, unless a request comes before
        self._foreseen: list[Moment] = []
        self._out = 0.0  # when the API process will have sent all that it was given
        self._sent: list[float] = []  # by completed step: when its tokens were out
        self._answers: dict[str, Answer] = {}
        self._finished: list[Answer] = []
        limits = setup.limits
        admission = Admission(
            capacity=min(limits.max_model_len, setup.num_blocks * limits.block_size),
            max_waiting=setup.max_waiting,
            max_waiting_tokens=setup.max_waiting_tokens,
        )
        self.scheduler = CruisingScheduler(
            limits,
            BlockPool(setup.num_blocks),
            admission,
            clock=lambda: self.clock.now,
            answer_of=lambda name: self.device.answers[int(name)],
            stepped=self._take_step,
            cruised=self._take_cruised,
            window=setup.window,
        )
        self.device = Device(model, self.clock, lambda: self.scheduler.cruising, window=setup.window)
        self.loop = EngineLoop(self.scheduler, self.device, self._take, ahead=setup.ahead, clock=lambda: self.clock.now)

    @property
    def busy(self) -> bool:
        return self.scheduler.has_work

    def submit(self, number: int, prompt: list[int], answer: list[int], when: float) -> Answer:
        """A request that reaches the engine at `when`: queued, or refused at once, as by the server."""
        made = Answer(len(prompt))
        params = SamplingParams(max_tokens=len(answer), seed=number)
        request = Request(request_id=str(number), prompt=prompt, params=params, arrival=when)
        refused = self.scheduler.admission.admit(request)
        if refused is not None:
            made.refused = refused.kind
            return made
        self.settle(when)
        self._foreseen.clear()
        if not self.busy:
            self.clock.now = max(self.clock.now, when)
        self._answers[request.request_id] = made
        self.device.answers[number] = answer
        self.loop.submit(request)
        self.loop.receive()
        self.ready = self.clock.now
        return made

    def advance(self, until: float = math.inf) -> list[Answer]:
        """One turn of the loop, or foresee many. The answers that ended in it.

        `until`: when something else happens; there is no use in knowing more than up to there.
        """
        if self._foreseen:
            self.settle(math.inf)
            return []
        turns = self.scheduler.coasting(self.setup.ahead)
        if turns:
            self._foreseen = self.device.foresee(turns, self.setup.ahead, until)
        if self._foreseen:
            self.ready = self._foreseen[-1].now
            return []
        if not self.loop.step():
            raise RuntimeError("the scheduler has work and plans none of it")
        self.ready = self.clock.now if self.busy else math.inf
        finished, self._finished = self._finished, []
        return finished

    def settle(self, when: float) -> None:
        """Let come to pass what was foreseen, up to the first turn that ends at or after `when`."""
        if self._foreseen and self.clock.now < when:
            count = bisect_left(self._foreseen, when, key=NOW) + 1
            self.scheduler.coast(self.device.pass_by(self._foreseen[:count]))
            del self._foreseen[:count]

    def _take_step(self, tokens: int) -> None:
        """The API process sends a step's tokens when it has sent those before."""
        self._out = max(self._out, self.clock.now) + tokens * self.setup.frontend.token
        self._sent.append(self._out)

    def _take_cruised(self, name: str, begin: int, end: int) -> None:
        self._answers[name].token_times += self._sent[begin:end]

    def _take(self, message: StepOutputs | Refused) -> None:
        if isinstance(message, Refused):
            raise RuntimeError(message.message)
        for output in message.outputs:
            answer = self._answers[output.request_id]
            answer.token_times.append(self._sent[-1])
            if output.finish_reason is not None:
                answer.cached = output.num_cached_tokens
                self._finished.append(answer)
                del self._answers[output.request_id], self.device.answers[int(output.request_id)]

"""How long something takes: medians of device events, warmed up, over data that no cache holds.

Calls are recorded into a CUDA graph where that works, so that the gaps between launches are not measured, and several
calls over different data follow each other in one recording, as layers do: of calls of a few microseconds at least
FEW, so that the launch of the recording itself, which the events include, does not count. Before each run a buffer
larger than the second-level cache is read. Written, it would leave lines that have to go back to memory while the
clock runs.

A CPU has the same stopwatch with a device of its own, so that a run without a GPU takes every way through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Call = Callable[[], object]
FEW = 20  # calls in one recording, of those that take as long as a launch or less
COLD_BYTES = 256 << 20  # several times the second-level cache
MOST_RUNS = 100
LEAST_RUNS = 7


class Event(Protocol):
    """A point in the device's work. Two of them have a time between them once both have come."""

    def record(self) -> object: ...

    def milliseconds_until(self, later: Any, /) -> float: ...


class Device(Protocol):
    """What a stopwatch asks of a device."""

    def synchronize(self) -> None: ...

    def event(self) -> Event: ...

    def forget(self) -> None:
        """Launch what drives everything else out of the caches."""
        ...

    def record(self, body: Call) -> Call:
        """What launches again what `body` launches. Raises NotRecorded, and then the device is as it was before."""
        ...


class NotRecorded(Exception):
    """A recording failed. One line: why."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one call, in milliseconds: the median, and the 10th and 90th percentile."""

    ms: float
    low: float
    high: float
    runs: int
    launched: str  # graph, eager (why not as a graph), or what else it was timed by

    def entry(self) -> dict[str, object]:
        """As a part of a measurement."""
        return {"ms": self.ms, "spread_ms": [self.low, self.high], "runs": self.runs, "launched": self.launched}


@dataclass(slots=True)
class Stopwatch:
    """`milliseconds`: what the runs of one measurement may take together; never less than `least_runs`."""

    device: Device
    milliseconds: float
    least_runs: int = LEAST_RUNS

    def measure(self, *calls: Call, graph: bool = True) -> Timing:
        """Time of one of the calls, which are made one after the other."""

        def eager() -> None:
            for call in calls:
                call()

        eager()  # compiles kernels and fills caches, which a recording must not
        self.device.synchronize()
        run, launched = self._recorded(eager) if graph else (eager, "eager")
        estimate = self._times(run, 2)[-1]
        runs = min(MOST_RUNS, max(self.least_runs, int(self.milliseconds / max(estimate, 1e-3))))
        return summary([ms / len(calls) for ms in self._times(run, runs)], launched)

    def _recorded(self, calls: Call) -> tuple[Call, str]:
        """The calls as one graph; as they are, and the reason, where they cannot be recorded."""
        try:
            return self.device.record(calls), "graph"
        except NotRecorded as error:
            return calls, f"eager ({error})"

    def _times(self, run: Call, runs: int) -> list[float]:
        pairs = []
        for _ in range(runs):
            self.device.forget()
            begin, end = self.device.event(), self.device.event()
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        self.device.synchronize()
        return [begin.milliseconds_until(end) for begin, end in pairs]


def summary(times: Sequence[float], launched: str) -> Timing:
    """Of one or more times."""
    ordered = sorted(times)
    last = len(ordered) - 1
    middle = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    return Timing(middle, ordered[round(last * 0.1)], ordered[round(last * 0.9)], len(ordered), launched)


def device_of(device: torch.device) -> Device:
    """A stopwatch's view of it."""
    return Cuda(device) if device.type == "cuda" else Host()


class Cuda:
    """A GPU, with torch's events and graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._other: Tensor | None = None

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def event(self) -> Event:
        return CudaEvent()

    def forget(self) -> None:
        if self._other is None:
            self._other = torch.zeros(COLD_BYTES // 4, device=self._device)
        torch.amax(self._other)

    def record(self, body: Call) -> Call:
        """See Device.record.

        Where a library waits for the device while it is recorded, torch leaves its capture without ending it: the
        stream that records stays the current one, the allocator keeps serving the recording's pool, and the generator
        of random numbers refuses to work outside of it. All three are put back.
        """
        number = torch.cuda.current_device()
        stream, generator = torch.cuda.current_stream(), torch.cuda.default_generators[number]
        random = generator.clone_state()
        pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                body()
        except Exception as error:  # libraries fail in many ways while they are recorded
            torch.cuda.set_stream(stream)
            with suppress(RuntimeError):  # it ended by itself
                torch._C._cuda_endAllocateToPool(number, pool)
            generator.graphsafe_set_state(random)
            torch.cuda.synchronize()
            first = _first(error)
            raise NotRecorded(f"{type(first).__name__}: {' '.join(str(first).split())[:120]}") from error
        return graph.replay


def _first(error: BaseException) -> BaseException:
    """What began it: ending a broken recording raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class CudaEvent:
    """See Event."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record()

    def milliseconds_until(self, later: Any, /) -> float:
        return float(self._event.elapsed_time(later._event))


class Host:
    """A CPU: everything has happened when a call returns, and a recording is the call itself."""

    def synchronize(self) -> None:
        return None

    def event(self) -> Event:
        return HostEvent()

    def forget(self) -> None:
        return None

    def record(self, body: Call) -> Call:
        body()
        return body


class HostEvent:
    """See Event."""

    def __init__(self) -> None:
        self._when = 0.0

    def record(self) -> None:
        self._when = time.perf_counter()

    def milliseconds_until(self, later: Any, /) -> float:
        return float(later._when - self._when) * 1e3

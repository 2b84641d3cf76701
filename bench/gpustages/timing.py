"""How long something takes: medians of device events, warmed up, over data that no cache holds.

Calls are recorded into a CUDA graph where that works, so that the gaps between launches are not measured, and several
calls over different data follow each other in one recording, as layers do. Before each run a buffer that is larger than
the second-level cache is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]
FLUSH_BYTES = 256 << 20
MOST_RUNS = 100
LEAST_RUNS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one call, in milliseconds: the median, and the 10th and 90th percentile."""

    ms: float
    low: float
    high: float
    runs: int
    launched: str  # graph, eager (why not as a graph), host

    def entry(self) -> dict[str, object]:
        """As a part of a measurement."""
        return {"ms": self.ms, "spread_ms": [self.low, self.high], "runs": self.runs, "launched": self.launched}


@dataclass(slots=True)
class Stopwatch:
    """`milliseconds`: what the runs of one measurement may take together; never less than LEAST_RUNS."""

    device: torch.device
    milliseconds: float
    _flush: Tensor | None = None

    def measure(self, *calls: Call, graph: bool = True) -> Timing:
        """Time of one of the calls, which are made one after the other."""
        if self.device.type != "cuda":
            return self._on_host(calls)
        for _ in range(2):
            _all(calls)
        torch.cuda.synchronize()
        run, launched = _recorded(calls) if graph else (lambda: _all(calls), "eager")
        estimate = self._events(run, 2)[-1]
        runs = min(MOST_RUNS, max(LEAST_RUNS, int(self.milliseconds / max(estimate, 1e-3))))
        return summary([ms / len(calls) for ms in self._events(run, runs)], launched)

    def _events(self, run: Call, runs: int) -> list[float]:
        if self._flush is None:
            self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        pairs = []
        for _ in range(runs):
            self._flush.fill_(1)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in pairs]

    def _on_host(self, calls: Sequence[Call]) -> Timing:
        begin = time.perf_counter()
        _all(calls)
        return summary([(time.perf_counter() - begin) * 1e3 / len(calls)], "host")


def summary(times: Sequence[float], launched: str) -> Timing:
    """Of one or more times."""
    ordered = sorted(times)
    last = len(ordered) - 1
    middle = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    return Timing(middle, ordered[round(last * 0.1)], ordered[round(last * 0.9)], len(ordered), launched)


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _recorded(calls: Sequence[Call]) -> tuple[Call, str]:
    """The calls as one graph; one by one, and the reason, where they cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _all(calls)
    except Exception as error:  # libraries fail in many ways while they are recorded
        torch.cuda.synchronize()
        reason = f"eager ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        return (lambda: _all(calls)), reason
    return graph.replay, "graph"

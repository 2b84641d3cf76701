"""How much of the time the GPU waits for the host while sequences generate: by events, and by a profiler.

The profiler slows the host down, which launches later then: what it finds idle is at least as much as there is. Events
cost next to nothing, but see only what lies between them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gpustages.network import Engine
from gpustages.place import Place
from gpustages.shapes import Shape
from gpustages.stages import Measurement
from gpustages.timing import Event, summary

Request = tuple[int, int, int]  # sequences, tokens of each prompt, tokens of each answer


@dataclass(slots=True)
class Marks:
    """Events before and after each step of decode rows, and before and after each replay of a recording in one."""

    steps: list[tuple[Event, Event]] = field(default_factory=list)
    replays: list[tuple[Event, Event]] = field(default_factory=list)


def idle_by_events(place: Place, shape: Shape, made: Engine, request: Request) -> Measurement:
    """The time from a step's last kernel to the next one's first, and that outside of replays, by the time of a step.

    Between a step's replay and its end are the kernels that choose tokens: the GPU's idle time is at least the first
    and less than the second.
    """
    with marked(place, made) as marks:
        made.generate(*request, ahead=1)
        place.synchronize()
    decoding = slice(len(marks.steps) // 2, None)  # the second half: no prompt's step is between them
    return {
        "name": f"{shape.name} decode, B{request[0]}: the GPU is idle (by events)",
        **shares(marks.steps[decoding], marks.replays[decoding]),
    }


@contextmanager
def marked(place: Place, made: Engine) -> Iterator[Marks]:
    """While this lasts, the engine's steps of decode rows leave marks among their kernels."""
    marks, runner, graphs = Marks(), made.runner, made.runner._graphs
    if graphs is None:
        raise ValueError("nothing is recorded that could be replayed")

    def between(call: Callable[..., Any], into: list[tuple[Event, Event]], when: Callable[..., bool]) -> Any:
        def marking(*arguments: Any) -> Any:
            if not when(*arguments):
                return call(*arguments)
            begin, end = place.stopwatch.device.event(), place.stopwatch.device.event()
            begin.record()
            found = call(*arguments)
            end.record()
            into.append((begin, end))
            return found

        return marking

    overlaid: tuple[tuple[Any, str, Any], ...] = (
        (runner, "launch", between(runner.launch, marks.steps, lambda step: all(row.decodes for row in step.rows))),
        (graphs, "replay", between(graphs.replay, marks.replays, lambda *_: True)),
    )
    for owner, name, function in overlaid:
        setattr(owner, name, function)
    try:
        yield marks
    finally:
        for owner, name, _ in overlaid:
            delattr(owner, name)


def shares(steps: list[tuple[Event, Event]], replays: list[tuple[Event, Event]]) -> Measurement:
    """Of the time from one step to the next."""
    pairs = list(zip(steps, steps[1:], strict=False))
    if not pairs or not replays:
        return {"note": "not known: too few steps were replayed"}
    whole = summary([one[0].milliseconds_until(next_[0]) for one, next_ in pairs], "events").ms
    between = summary([one[1].milliseconds_until(next_[0]) for one, next_ in pairs], "events").ms
    replayed = summary([begin.milliseconds_until(end) for begin, end in replays], "events").ms
    idle, outside = between / whole, 1 - replayed / whole
    note = f"{idle:.1%} between steps; {outside:.1%} outside of replays, choosing tokens included; "
    note += f"a replay takes {replayed:.3f} ms of the {whole:.3f} ms from step to step"
    return {"idle_share": idle, "outside_share": outside, "replay_ms": replayed, "step_ms": whole, "note": note}


def profile(place: Place, shape: Shape, made: Engine, request: Request) -> Iterator[Measurement]:
    """The share of time in which the GPU does nothing while all sequences generate, and which kernels take the rest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if place.device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]  # the host's own events would slow the host down
    name = f"{shape.name} decode, B{request[0]}: the GPU is idle (while profiled)"
    with torch.profiler.profile(activities=activities) as profiler:
        made.generate(*request, ahead=1)
        place.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events() or ()
        if str(event.device_type).lower().endswith(place.device.type)
    )
    spans = spans[len(spans) // 2 :]  # the second half of all kernels: decoding only
    busy, total = busy_time([(start, end) for start, end, _ in spans])
    if not total:
        yield {"name": name, "note": "not known: the profiler saw no kernels"}
        return
    taken: Counter[str] = Counter()
    for start, end, kernel in spans:
        taken[kernel[:60]] += end - start
    parts = {kernel: time / sum(taken.values()) for kernel, time in taken.most_common(20)}
    most = ", ".join(f"{kernel[:30]} {part:.0%}" for kernel, part in list(parts.items())[:6])
    gap = summary(made.gaps(request[0]), "engine").ms
    note = f"{1 - busy / total:.1%}; {gap:.2f} ms between tokens; of the rest {most}"
    yield {"name": name, "idle_share": 1 - busy / total, "kernels": parts, "note": note}


def busy_time(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Of (start, end) in order of start: the time that at least one covers, and that from the first to the last."""

    def add(sofar: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
        covered, until = sofar
        start, end = span
        return covered + max(0.0, end - max(start, until)), max(until, end)

    if not spans:
        return 0.0, 0.0
    covered, until = functools.reduce(add, spans, (0.0, spans[0][0]))
    return covered, until - spans[0][0]

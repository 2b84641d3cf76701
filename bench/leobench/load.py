"""When requests are sent: so many at a time (closed loop), or at moments that do not wait for answers (open loop)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Pattern = Literal["closed", "poisson", "gamma", "constant", "trace", "ramp"]


class BadLoad(ValueError):
    """The options make no load. One line that says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """A quantity over the run: from `begin` to `end`, linearly. Both the same: it stays."""

    begin: float
    end: float

    @property
    def steady(self) -> bool:
        return self.begin == self.end

    def at(self, share: float) -> float:
        """Its value when `share` of the run, 0 to 1, is over."""
        return self.begin + (self.end - self.begin) * min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True)
class Load:
    """A load pattern. What is sent is a session: one request, or a conversation whose later turns follow by themselves.

    concurrency: sessions at a time, in a closed loop; in an open one None
    rate: sessions a second, in an open loop; None for a trace's own arrivals
    cv: the coefficient of variation of the time between arrivals: 1 Poisson, 0 evenly spaced, above 1 in bursts
    speed: how many times as fast as it was recorded a trace runs
    requests, duration: the load ends after so many requests, or seconds, whichever comes first
    """

    pattern: Pattern
    concurrency: Span | None = None
    rate: Span | None = None
    cv: float = 1.0
    speed: float = 1.0
    requests: int | None = None
    duration: float | None = None
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """For the result's file, without what does not apply."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("concurrency", "rate"):
            span: Span | None = getattr(self, name)
            if span is not None:
                told[name] = span.begin if span.steady else [span.begin, span.end]
        if self.rate is None:
            del told["cv"]
        if self.pattern != "trace":
            del told["speed"]
        return told

    def users(self, now: float) -> int:
        """How many sessions a closed loop has `now` seconds after its begin."""
        if self.concurrency is None:
            raise BadLoad("an open loop has no concurrency")
        share = now / self.duration if self.duration else 0.0
        return max(1, math.floor(self.concurrency.at(share) + 1e-9))

    def arrivals(self) -> Iterator[float]:
        """Intended seconds of an open loop's sessions, ascending, from the seed; none after `duration`.

        Without `duration` there is no end: whoever sends stops after `requests`. A ramp is the same process with its
        time stretched so that the expected count grows as the ramp says.
        """
        if self.rate is None:
            raise BadLoad("only an open loop with a rate has arrivals")
        draw = np.random.default_rng([self.seed, 1])
        shape = 1 / self.cv**2 if self.cv else math.inf
        expected = 0.0  # the arrivals expected until now
        while True:
            gaps = np.ones(256) if math.isinf(shape) else draw.gamma(shape, 1 / shape, 256)
            for gap in gaps.tolist():
                expected += gap
                when = self._time_of(expected, self.rate)
                if when is None or (self.duration is not None and when >= self.duration):
                    return
                yield when

    def _time_of(self, expected: float, rate: Span) -> float | None:
        """When so many arrivals are expected; None when the ramp expects fewer."""
        begin, end = rate.begin, rate.end
        if rate.steady:
            return expected / begin
        length = self.duration or 2 * (self.requests or 0) / (begin + end)
        slope = (end - begin) / length
        under_root = begin * begin + 2 * slope * expected
        if under_root < 0:
            return None
        return (math.sqrt(under_root) - begin) / slope


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a load."""
    group = parser.add_argument_group("load: when requests are sent")
    add_quantities(group)
    add_rest(group)


def add_rest_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a load whose concurrency or rate is set by something else."""
    parser.set_defaults(concurrency=None, rate=None)
    add_rest(parser.add_argument_group("load: when requests are sent"))


def add_quantities(group: argparse._ArgumentGroup) -> None:
    """How much load there is."""
    group.add_argument(
        "--concurrency",
        type=span,
        metavar="N|A:B",
        help="closed loop: so many users at a time, each waits for its answer; A:B grows from A to B over --duration "
        "[default: 8, unless --rate or a trace says otherwise]",
    )
    group.add_argument(
        "--rate",
        type=span,
        metavar="R|A:B",
        help="open loop: so many arrivals a second, whether or not answers came; A:B goes from A to B over the run",
    )


def add_rest(group: argparse._ArgumentGroup) -> None:
    """How it comes, and for how long."""
    group.add_argument(
        "--cv",
        type=nonnegative,
        default=1.0,
        metavar="X",
        help="how uneven arrivals are: coefficient of variation of the time between two; 1 is Poisson, 0 evenly "
        "spaced, 2 or 3 come in bursts (gamma) [default: 1]",
    )
    group.add_argument(
        "--speed", type=positive, default=1.0, metavar="X", help="run a trace X times as fast as recorded [default: 1]"
    )
    group.add_argument(
        "--requests",
        type=count,
        metavar="N",
        help="send so many requests [default: 100, unless --duration is given; a trace: all of it]",
    )
    group.add_argument("--duration", type=positive, metavar="S", help="send requests for so many seconds")


def from_options(options: argparse.Namespace) -> Load:
    """The load that the options describe. Raises BadLoad."""
    concurrency, rate = options.concurrency, options.rate
    if concurrency is not None and rate is not None:
        raise BadLoad("--concurrency is a closed loop and --rate an open one: give one of them")
    trace = options.workload == "trace" and concurrency is None and rate is None
    requests = options.requests
    if requests is None and options.duration is None and options.workload != "trace":
        requests = 100
    limits = {"requests": requests, "duration": options.duration, "seed": options.seed}
    if trace:
        return Load("trace", speed=options.speed, **limits)
    if rate is not None:
        if not rate.steady and options.duration is None and requests is None:
            raise BadLoad("a ramp needs --duration or --requests")
        return Load(open_pattern(rate, options.cv), rate=rate, cv=options.cv, **limits)
    concurrency = concurrency or Span(8, 8)
    if min(concurrency.begin, concurrency.end) < 1:
        raise BadLoad("--concurrency is at least 1")
    if not concurrency.steady and options.duration is None:
        raise BadLoad("a ramp of --concurrency needs --duration")
    return Load("closed" if concurrency.steady else "ramp", concurrency=concurrency, **limits)


def open_pattern(rate: Span, cv: float) -> Pattern:
    """The name of an open loop's process."""
    if not rate.steady:
        return "ramp"
    if cv == 0:
        return "constant"
    return "poisson" if cv == 1 else "gamma"


def describe(load: Load) -> str:
    """A load in a few words."""
    if load.concurrency is not None:
        return f"concurrency {quantity(load.concurrency)}"
    if load.rate is not None:
        return f"{quantity(load.rate)} requests/s, {load.pattern}"
    return "at its own times" + (f", {load.speed:g} times as fast" if load.speed != 1 else "")


def quantity(span: Span) -> str:
    return f"{span.begin:g}" if span.steady else f"{span.begin:g} to {span.end:g}"


def span(text: str) -> Span:
    """`4` or `1:64`, above 0. Raises ArgumentTypeError."""
    begin, _, end = text.partition(":")
    return Span(positive(begin), positive(end or begin))


def positive(text: str) -> float:
    """A number above 0. Raises ArgumentTypeError."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def nonnegative(text: str) -> float:
    """A number, at least 0. Raises ArgumentTypeError."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def count(text: str) -> int:
    """A whole number, at least 1. Raises ArgumentTypeError."""
    value = number(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(value)


def number(text: str) -> float:
    """A finite number. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a number")
    return value

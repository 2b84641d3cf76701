"""Distributions of lengths and of pauses, as options write them: `128`, `uniform:64:256`, `lognormal:200:0.8`."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Literal

from numpy.random import Generator

from leobench.load import nonnegative

FARTHEST = 4.0  # standard deviations of the logarithm: a longer draw would say nothing of a server
SYNTAX = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"


@dataclass(frozen=True, slots=True)
class Lengths:
    """fixed: always `low`. uniform: `low` to `high`, both included. lognormal: median `low`, and `high` is the standard
    deviation of the logarithm."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}" if self.kind == "fixed" else f"{self.kind}:{self.low:g}:{self.high:g}"

    def draw(self, generator: Generator) -> float:
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return float(generator.uniform(self.low, self.high))
        deviation = min(FARTHEST, max(-FARTHEST, float(generator.standard_normal())))
        return self.low * math.exp(self.high * deviation)

    def draw_count(self, generator: Generator) -> int:
        """A whole number, at least 1."""
        if self.kind == "uniform":
            return max(1, int(generator.integers(round(self.low), round(self.high), endpoint=True)))
        return max(1, round(self.draw(generator)))


def lengths(text: str) -> Lengths:
    """An option's value. Raises ArgumentTypeError."""
    kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
    match kind, [nonnegative(value) for value in numbers]:
        case "fixed", [value]:
            return Lengths("fixed", value, value)
        case "uniform", [low, high] if low <= high:
            return Lengths("uniform", low, high)
        case "lognormal", [median, sigma] if median > 0:
            return Lengths("lognormal", median, sigma)
    raise argparse.ArgumentTypeError(f"{text} is none of {SYNTAX}")


def counts(text: str) -> Lengths:
    """An option's value that counts tokens or turns: at least 1. Raises ArgumentTypeError."""
    value = lengths(text)
    if value.low < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value

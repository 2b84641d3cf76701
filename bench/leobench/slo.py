"""Bounds as options write them: of single requests for goodput, and of a run's figures for a sweep."""

from __future__ import annotations

import argparse
import re
from typing import Any

from msgspec import Struct

from leobench.records import Slo
from leobench.summary import QUANTILES

UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3}
DURATION = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s)?"
FIGURES = ("mean", *QUANTILES, "max")
BOUND = re.compile(
    rf"(?P<figure>{'|'.join(FIGURES)})\s*(?P<quantity>ttft|itl|tpot|e2e)\s*<=\s*{DURATION}", re.IGNORECASE
)


def seconds(text: str) -> float:
    """`500ms`, `0.5s` or `0.5`. Raises ArgumentTypeError."""
    match = re.fullmatch(DURATION, text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no duration such as 500ms or 0.5s")
    return float(match["number"]) * UNITS[match["unit"] or ""]


def slo(text: str) -> Slo:
    """`ttft=500ms,itl=50ms`: what every good request keeps. Raises ArgumentTypeError."""
    bounds = Slo()
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in Slo.__struct_fields__:
            raise argparse.ArgumentTypeError(f"{part} is none of ttft=, itl=, tpot= and e2e= with a duration")
        setattr(bounds, name.strip(), seconds(value))
    return bounds


class Bound(Struct, frozen=True):
    """A bound of a run's figure, in seconds: the 99th percentile of the times to the first token, say."""

    figure: str
    quantity: str
    most: float

    def __str__(self) -> str:
        return f"{self.figure} {self.quantity} <= {self.most * 1e3:g} ms"

    def value(self, summary: dict[str, Any]) -> float | None:
        """The figure in a summary; None where there is none."""
        told = summary[self.quantity]
        return None if told is None else float(told[self.figure])

    def kept(self, summary: dict[str, Any]) -> bool:
        """A figure that is not there keeps no bound."""
        value = self.value(summary)
        return value is not None and value <= self.most


def bound(text: str) -> Bound:
    """`p99 ttft <= 500 ms`. Raises ArgumentTypeError."""
    match = BOUND.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no bound such as 'p99 ttft <= 500 ms': one of {', '.join(FIGURES)}, one of ttft, itl, tpot "
            "and e2e, <= and a duration"
        )
    return Bound(
        match["figure"].lower(),
        match["quantity"].lower(),
        float(match["number"]) * UNITS[(match["unit"] or "").lower()],
    )

"""What is compared between runs, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leobench.records import RequestRecord
from leobench.summary import e2e, gaps, tpot, ttft


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something to compare: a percentile where there are `values` of a request and a `level`, or a rate, or a share."""

    name: str
    unit: Literal["s", "a second", "share"]
    more_is_better: bool
    of: Callable[[dict[str, Any]], float | None]  # from a summary
    values: Callable[[RequestRecord], Sequence[float]] | None = None
    level: float = 0.0

    @property
    def as_ratio(self) -> bool:
        """Shares differ by so many points, everything else by a factor."""
        return self.unit != "share"


def _percentile_of(
    name: str,
    key: str,
    level: str,
    values: Callable[[RequestRecord], float | None] | Callable[[RequestRecord], list[float]],
) -> Quantity:
    def of(summary: dict[str, Any]) -> float | None:
        return summary[key][level] if summary[key] else None

    def all_values(record: RequestRecord) -> Sequence[float]:
        found = values(record)
        if isinstance(found, list):
            return found
        return () if found is None else (found,)

    return Quantity(f"{name} {level}", "s", False, of, all_values, int(level[1:]) / 100)


def _failed(summary: dict[str, Any]) -> float | None:
    requests = summary["requests"]
    total = requests["ok"] + requests["failed"]
    return requests["failed"] / total if total else None


OUTPUT = Quantity("output tokens/s", "a second", True, lambda summary: summary["throughput"]["output_tokens_s"])
ANSWERS = Quantity("answers/s", "a second", True, lambda summary: summary["throughput"]["requests_s"])
GOOD = Quantity("goodput", "share", True, lambda summary: summary["goodput"]["share"] if summary["goodput"] else None)
FAILED = Quantity("failed", "share", False, _failed)
BOUNDED = {  # what a goodput's bounds are of, by the name of the bound
    "ttft": _percentile_of("TTFT", "ttft", "p50", ttft),
    "itl": _percentile_of("ITL", "itl", "p50", gaps),
    "tpot": _percentile_of("TPOT", "tpot", "p50", tpot),
    "e2e": _percentile_of("end to end", "e2e", "p50", e2e),
}
QUANTITIES = [
    OUTPUT,
    ANSWERS,
    BOUNDED["ttft"],
    _percentile_of("TTFT", "ttft", "p99", ttft),
    BOUNDED["itl"],
    _percentile_of("ITL", "itl", "p99", gaps),
    BOUNDED["tpot"],
    BOUNDED["e2e"],
    _percentile_of("end to end", "e2e", "p99", e2e),
    GOOD,
    FAILED,
]

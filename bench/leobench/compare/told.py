"""A comparison as text for a terminal, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leobench.compare.differences import Difference
from leobench.report.markup import around, element, table
from leobench.report.page import document
from leobench.report.wording import count, duration, number, share

CHANCE = "Each row stands for itself, at 95%: of twenty that are the same, about one shows a difference by chance."
WITHIN = (
    "One run a side: the spread is the one within the runs, by blocks of time. What changes only from run to run "
    "does not show in it; repeat the runs to be sure."
)
FEW = 3
DRIFT = "neighbouring blocks hang together, as when a queue builds up over the run, so that one run says little."


@dataclass(frozen=True, slots=True)
class Comparison:
    """One side against the first one, at one value of a sweep or none."""

    first: str
    other: str
    at: str  # '8 requests/s', or empty
    runs: tuple[int, int]
    differences: list[Difference]
    warnings: list[str]

    @property
    def title(self) -> str:
        return f"{self.other} against {self.first}" + (f", {self.at}" if self.at else "")

    @property
    def basis(self) -> str:
        """Where the spread comes from."""
        if self.runs == (1, 1):
            names = [each.quantity.name for each in self.differences if each.blocks is not None and each.blocks < FEW]
            return WITHIN + (f" {', '.join(names)}: {DRIFT}" if names else "")
        return f"Spread between runs: {count(self.runs[0], 'run')} against {count(self.runs[1], 'run')}."


def head(comparison: Comparison) -> list[str]:
    return ["", comparison.first, comparison.other, "ratio", "95% interval", ""]


def rows(comparison: Comparison) -> list[list[str]]:
    return [_row(difference) for difference in comparison.differences]


def _row(difference: Difference) -> list[str]:
    quantity = difference.quantity
    value = {"s": duration, "a second": number, "share": share}[quantity.unit]
    if quantity.as_ratio:
        change, low, high = (f"{part:.3f}" for part in (difference.change, difference.low, difference.high))
    else:
        change, low, high = (f"{100 * part:+.2f}" for part in (difference.change, difference.low, difference.high))
        change, high = f"{change} points", f"{high} points"
    return [
        quantity.name,
        value(difference.first),
        value(difference.other),
        change,
        f"{low} to {high}",
        difference.verdict,
    ]


def text(comparisons: Sequence[Comparison]) -> str:
    """Tables with aligned columns, warnings above them."""
    parts = []
    for comparison in comparisons:
        lines = [head(comparison), *rows(comparison)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        warnings = [f"  ! {line}" for line in comparison.warnings]
        body = [_aligned(line, widths) for line in lines]
        parts.append("\n".join([comparison.title, *warnings, *body, comparison.basis]))
    return "\n\n".join([*parts, CHANCE])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The name and the verdict to the left, figures to the right."""
    name, *figures, verdict = cells
    middle = (cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True))
    return "  ".join([name.ljust(widths[0]), *middle, verdict]).rstrip()


def plain(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """For JSON. Seconds, rates and shares are numbers; `change` is a ratio, of shares a difference."""
    return [
        {
            "first": comparison.first,
            "other": comparison.other,
            "at": comparison.at or None,
            "runs": list(comparison.runs),
            "warnings": comparison.warnings,
            "differences": [
                {
                    "quantity": each.quantity.name,
                    "unit": each.quantity.unit,
                    "first": each.first,
                    "other": each.other,
                    "change": each.change,
                    "low": each.low,
                    "high": each.high,
                    "verdict": each.verdict,
                }
                for each in comparison.differences
            ],
        }
        for comparison in comparisons
    ]


def page(comparisons: Sequence[Comparison], title: str) -> str:
    """The same tables on a page like the report's, with a chart of the ratios above each."""
    parts = []
    for place, comparison in enumerate(comparisons):
        parts.append(element("h2", comparison.title))
        if comparison.warnings:
            items = [element("li", line) for line in comparison.warnings]
            parts.append(
                around("section", [element("h2", "Not a fair comparison?"), around("ul", items)], kind="warnings")
            )
        parts.append(around("div", [], id=f"comparison-{place}"))
        parts.append(table("Ratios and their spread", head(comparison), rows(comparison)))
        parts.append(element("p", comparison.basis))
    return document(title, CHANCE, "".join(parts), {"comparisons": [_charted(each) for each in comparisons]})


def _charted(comparison: Comparison) -> dict[str, Any]:
    """What the chart shows: ratios, which have an axis in common."""
    ratios = [each for each in comparison.differences if each.quantity.as_ratio]
    rows = [
        {"name": each.quantity.name, "change": each.change, "low": each.low, "high": each.high, "verdict": each.verdict}
        for each in ratios
    ]
    return {"title": comparison.title, "rows": rows}

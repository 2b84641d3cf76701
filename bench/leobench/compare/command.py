"""The command: which files are compared, and where the comparison goes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from leobench.compare import told
from leobench.compare.differences import differences
from leobench.compare.sides import Incomparable, Side, common, sides, unfair
from leobench.compare.told import Comparison
from leobench.records import Unreadable
from leobench.report.shown import at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="results of run, sweep or simulate; the first is what the others are held against, and results of the "
        "same name are repetitions",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        type=_labelled,
        metavar="NAME=FILE,FILE",
        help="repetitions under a name of your own; once for each side, after any FILEs in order",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also as a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also as JSON")


def _labelled(text: str) -> tuple[str, list[Path]]:
    label, _, files = text.partition("=")
    if not label or not files:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE or NAME=FILE,FILE")
    return label, [Path(file) for file in files.split(",")]


def main(options: argparse.Namespace) -> int:
    """Exit status 2 when there is nothing to compare, or a file cannot be read or written."""
    try:
        first, *others = sides(options.results, options.label)
        comparisons = [each for other in others for each in _comparisons(first, other)]
        print(told.text(comparisons))
        if options.html:
            title = f"{', '.join(other.label for other in others)} against {first.label}"
            options.html.write_text(told.page(comparisons, title), encoding="utf-8")
        if options.json:
            options.json.write_text(json.dumps(told.plain(comparisons), indent=1) + "\n", encoding="utf-8")
    except (Incomparable, Unreadable, OSError) as error:
        print(f"leobench compare: {error}", file=sys.stderr)
        return 2
    return 0


def _comparisons(first: Side, other: Side) -> list[Comparison]:
    found = []
    for key in common(first, other):
        runs = first.runs[key], other.runs[key]
        place = at(first.axis, key) if first.axis and key is not None else ""
        sizes = len(runs[0]), len(runs[1])
        found.append(Comparison(first.label, other.label, place, sizes, differences(*runs), unfair(*runs)))
    return found

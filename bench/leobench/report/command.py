"""`leobench report`: results as one page to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from leobench.records import Run, Sweep, Unreadable, read
from leobench.report.page import page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="results of run, sweep or simulate")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: beside the first result, ending in .html)"
    )
    parser.add_argument("--title", help="of the page (default: the names of the results)")


def main(options: argparse.Namespace) -> int:
    """Exit status 2 when a result cannot be read, or has no requests to show."""
    try:
        results = [(file.name, _with_requests(file)) for file in options.results]
    except Unreadable as error:
        print(f"leobench report: {error}", file=sys.stderr)
        return 2
    title = options.title or ", ".join(dict.fromkeys(result.name for _, result in results))
    out: Path = options.out or options.results[0].with_suffix(".html")
    try:
        out.write_text(page(results, title), encoding="utf-8")
    except OSError as error:
        print(f"leobench report: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


def _with_requests(file: Path) -> Run | Sweep:
    result = read(file)
    runs = [result] if isinstance(result, Run) else result.runs
    if not runs or not all(run.requests for run in runs):
        raise Unreadable(f"{file}: it has no requests to show")
    return result

"""`leobench sweep`: a run for each of several loads, or the highest load that keeps an SLO."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import uvloop

from leobench import load as loads
from leobench import options as common
from leobench import workloads
from leobench.load import BadLoad, Load, Span, positive
from leobench.options import Unusable
from leobench.progress import milliseconds
from leobench.records import Run, Sweep, write
from leobench.search import highest
from leobench.slo import Bound, bound
from leobench.workloads import BadTrace, share

FAILED, UNUSABLE = 1, 2
COLUMNS = ("ttft", "p50"), ("ttft", "p99"), ("itl", "p50"), ("itl", "p99"), ("e2e", "p50"), ("e2e", "p99")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of a run but --concurrency and --rate, and what takes their place."""
    add_sweep_arguments(parser.add_argument_group("sweep: give --values or --search"))
    common.add_arguments(parser)
    workloads.add_arguments(parser)
    loads.add_rest_arguments(parser)
    common.add_result_arguments(parser)


def add_sweep_arguments(group: argparse._ArgumentGroup) -> None:
    """What changes from run to run, and what is looked for."""
    group.add_argument(
        "--axis", choices=["concurrency", "rate"], default="concurrency", help="what changes [default: concurrency]"
    )
    group.add_argument("--values", type=values, metavar="A,B,...", help="one run for each, in this order")
    group.add_argument(
        "--search", type=span, metavar="LOW:HIGH", help="find the highest value between these that keeps every --keep"
    )
    group.add_argument(
        "--keep",
        type=bound,
        action="append",
        default=[],
        metavar="BOUND",
        help="of a run's figures, such as 'p99 ttft <= 500 ms' or 'p99 itl <= 50 ms'; several may be given",
    )
    group.add_argument(
        "--most-failed",
        type=share,
        default=0.0,
        metavar="X",
        help="of the requests, for a value to be kept [default: 0]",
    )
    group.add_argument(
        "--tolerance",
        type=positive,
        default=0.05,
        metavar="X",
        help="the search ends when it knows the value to this share [default: 0.05]",
    )


def main(options: argparse.Namespace) -> int:
    """0: done. 1: nothing was answered, or not even the lowest load kept the bounds. 2: it could not begin."""
    from leobench.measure import Bench  # what searches in a simulation needs no client

    try:
        check(options)
        sweep = uvloop.run(Sweeper(options, lambda: Bench.find(options)).sweep())
    except (Unusable, BadTrace, BadLoad) as error:
        print(f"leobench: error: {error}", file=sys.stderr)
        return UNUSABLE
    if options.out is not None:
        write(sweep, options.out)
        print(f"written to {options.out}", file=sys.stderr)
    print(rows(sweep))
    answered = any(run.summary["requests"]["ok"] for run in sweep.runs)
    return 0 if answered and (not sweep.search or sweep.search["highest"] is not None) else FAILED


def check(options: argparse.Namespace) -> None:
    """Raises BadLoad for options that contradict each other."""
    if (options.values is None) == (options.search is None):
        raise BadLoad("give either --values or --search")
    if options.search is not None and not options.keep:
        raise BadLoad("--search needs at least one --keep, such as 'p99 ttft <= 500 ms'")
    if options.keep and not options.stream and any(one.quantity != "e2e" for one in options.keep):
        raise BadLoad("without streaming nobody sees when tokens come: --keep can only bound e2e")
    if options.axis == "concurrency":
        tried = options.values or [options.search.begin, options.search.end]
        if any(value != int(value) for value in tried):
            raise BadLoad("a concurrency is a whole number")


class Measures(Protocol):
    """What loads are measured on: a server, or a simulation of some."""

    @property
    def interrupted(self) -> bool: ...

    async def measure(self, load: Load) -> Run: ...


class Sweeper:
    """Runs one load after the other, and stops after the one that Ctrl-C ended."""

    def __init__(self, options: argparse.Namespace, find: Callable[[], Awaitable[Measures]]) -> None:
        self.options = options
        self.tried: list[float] = []
        self.runs: list[Run] = []
        self.find = find
        self.bench: Measures

    async def sweep(self) -> Sweep:
        """Raises Unusable, BadLoad and BadTrace."""
        options = self.options
        self.bench = await self.find()
        search: dict[str, Any] = {}
        try:
            if options.values is not None:
                for value in options.values:
                    await self.measure(value)
            else:
                search = await self.search()
        except Interrupted:
            pass
        order = sorted(range(len(self.runs)), key=self.tried.__getitem__)
        name = options.name or f"{options.workload} by {options.axis}"
        return Sweep(name, options.axis, [self.tried[at] for at in order], [self.runs[at] for at in order], search)

    async def search(self) -> dict[str, Any]:
        """What the search came to, for the result's file."""
        options, steps = self.options, list[dict[str, Any]]()

        async def kept(value: float) -> bool:
            run = await self.measure(value)
            keeps = keeps_all(run, options.keep, options.most_failed)
            figures = {str(one): one.value(run.summary) for one in options.keep}
            steps.append({"value": value, "kept": keeps, "figures": figures})
            print(f"{options.axis} {value:g}: {'kept' if keeps else 'not kept'}", file=sys.stderr)
            return keeps

        low, high = options.search.begin, options.search.end
        found = await highest(low, high, options.tolerance, kept, whole=options.axis == "concurrency")
        return {
            "low": low,
            "high": high,
            "keep": [str(one) for one in options.keep],
            "most_failed": options.most_failed,
            "tolerance": options.tolerance,
            "steps": steps,
            "highest": found.highest,
            "lowest_broken": found.lowest_broken,
        }

    async def measure(self, value: float) -> Run:
        """One value, with requests that no earlier value had: a server remembers prompts. Raises Interrupted."""
        print(f"{self.options.axis} {value:g}", file=sys.stderr)
        run = await self.bench.measure(load_of(self.options, value, len(self.runs)))
        self.tried.append(value)
        self.runs.append(run)
        if self.bench.interrupted:
            raise Interrupted
        return run


class Interrupted(Exception):
    """Ctrl-C came: the sweep is over, and what was measured is kept."""


def load_of(options: argparse.Namespace, value: float, place: int) -> Load:
    """The load of the sweep's run number `place`. Raises BadLoad."""
    given = argparse.Namespace(**vars(options) | {"seed": options.seed + place, options.axis: Span(value, value)})
    return loads.from_options(given)


def keeps_all(run: Run, bounds: list[Bound], most_failed: float) -> bool:
    """Whether a run kept every bound, and not too many of its requests failed."""
    requests = run.summary["requests"]
    failed = requests["failed"] / max(1, requests["ok"] + requests["failed"])
    return failed <= most_failed and all(one.kept(run.summary) for one in bounds)


def rows(sweep: Sweep) -> str:
    """A line for each value, and what the search found."""
    head = f"{sweep.axis:>12}{'answered':>10}{'failed':>8}{'requests/s':>12}{'tokens/s':>10}"
    head += "".join(f"{f'{key} {figure}':>11}" for key, figure in COLUMNS)
    lines = [sweep.name, f"{head}  (ms)"]
    for value, run in zip(sweep.values, sweep.runs, strict=True):
        summary = run.summary
        line = f"{value:>12.4g}{summary['requests']['ok']:>10}{summary['requests']['failed']:>8}"
        line += f"{summary['throughput']['requests_s']:>12.2f}{summary['throughput']['output_tokens_s']:>10.1f}"
        for key, figure in COLUMNS:
            told = summary[key]
            line += f"{milliseconds(told[figure]) if told else '-':>11}"
        lines.append(line)
        lines += [f"{'':>12}  warning: {warning}" for warning in run.client.warnings]
    return "\n".join(lines + ([outcome(sweep)] if sweep.search else []))


def outcome(sweep: Sweep) -> str:
    """The search's answer in a sentence."""
    search, wanted = sweep.search, " and ".join(sweep.search["keep"])
    if search["highest"] is None:
        return f"not even {sweep.axis} {search['low']:g} keeps {wanted}"
    if search["lowest_broken"] is None:
        return f"{sweep.axis} {search['highest']:g} keeps {wanted}; search higher for the limit"
    return f"{sweep.axis} {search['highest']:.4g} keeps {wanted}; {search['lowest_broken']:.4g} does not"


def values(text: str) -> list[float]:
    """`1,2,4,8`. Raises ArgumentTypeError."""
    return [positive(part) for part in text.split(",")]


def span(text: str) -> Span:
    """`1:50`. Raises ArgumentTypeError."""
    low, _, high = text.partition(":")
    found = Span(positive(low), positive(high or low))
    if found.end <= found.begin:
        raise argparse.ArgumentTypeError(f"{text} is not LOW:HIGH with LOW below HIGH")
    return found

"""`leobench run`: one load on one server, measured."""

from __future__ import annotations

import argparse
import sys

import uvloop

from leobench import load as loads
from leobench import options as common
from leobench import workloads
from leobench.load import BadLoad, Load
from leobench.measure import Bench
from leobench.options import Unusable
from leobench.progress import table
from leobench.records import Run, write
from leobench.workloads import BadTrace

FAILED, UNUSABLE = 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of a run."""
    common.add_arguments(parser)
    workloads.add_arguments(parser)
    loads.add_arguments(parser)
    common.add_result_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """0: something was answered. 1: nothing was. 2: it could not begin, and one line says why."""
    try:
        run = uvloop.run(once(options, loads.from_options(options)))
    except (Unusable, BadTrace, BadLoad) as error:
        print(f"leobench: error: {error}", file=sys.stderr)
        return UNUSABLE
    if options.out is not None:
        write(run, options.out)
        print(f"written to {options.out}", file=sys.stderr)
    print(table(run))
    return 0 if run.summary["requests"]["ok"] else FAILED


async def once(options: argparse.Namespace, load: Load) -> Run:
    """Find the server and measure one load. Raises Unusable and BadTrace."""
    bench = await Bench.find(options)
    return await bench.measure(load)

"""`leobench simulate`: what so many users on so many GPUs would see."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from leobench import load as loads
from leobench import options as common
from leobench import workloads
from leobench.load import BadLoad, count, nonnegative
from leobench.options import Unusable
from leobench.progress import table
from leobench.records import write
from leobench.simulate import calibrated
from leobench.simulate.hardware import GPUS
from leobench.simulate.network import ITEMSIZES, KV_ITEMSIZES
from leobench.simulate.plan import GPU, MODEL, UTILIZATION, Simulation
from leobench.simulate.routing import ROUTERS
from leobench.slo import slo
from leobench.sweep import Sweeper, add_sweep_arguments, check, rows
from leobench.workloads import BadTrace, share
from leobench.workloads.lengths import lengths
from leoserve.model import published
from leoserve.model.capacity import TOKENS_PER_STEP, TooLittleMemory
from leoserve.model.config import UnsupportedModel

FAILED, UNUSABLE = 1, 2
THINK = "lognormal:15:0.8"  # seconds; a user reads, and writes
DURATION = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Hardware and server first, then workload and load as a run has them, then what a sweep has."""
    add_hardware(parser.add_argument_group("hardware: what is simulated"))
    add_server(parser.add_argument_group("server: as the options of `leoserve serve`"))
    workloads.add_arguments(parser)
    loads.add_arguments(parser)
    parser.add_argument(
        "--users",
        dest="concurrency",
        type=loads.span,
        metavar="N|A:B",
        help="the same as --concurrency: so many people, who think between an answer and their next question",
    )
    add_sweep_arguments(parser.add_argument_group("sweep: --values or --search make a run of each load"))
    add_result(parser.add_argument_group("result"))
    parser.set_defaults(workload="conversations", think=lengths(THINK), stream=True)


def add_hardware(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="NAME|FOLDER", help=f"{', '.join(published.SHORT)}, or a checkpoint [default: {MODEL}]"
    )
    group.add_argument("--gpu", choices=list(GPUS), help=f"[default: {GPU}]")
    group.add_argument(
        "--gpus", type=count, default=1, metavar="N", help="in all; with --calibration so many machines [default: 1]"
    )
    group.add_argument("--tensor-parallel", type=count, metavar="N", help="GPUs that share each replica [default: 1]")
    group.add_argument("--dtype", choices=list(ITEMSIZES), help="of weights [default: the checkpoint's]")
    group.add_argument("--kv-dtype", choices=list(KV_ITEMSIZES), help="of the cache [default: auto, as the weights]")
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="of a machine, by bench/calibrate.py, in place of the options above",
    )
    group.add_argument(
        "--routing", choices=ROUTERS, default="prefix-affine", help="among replicas [default: prefix-affine]"
    )


def add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-num-seqs", type=count, metavar="N", help="[default: 256]")
    group.add_argument("--max-num-batched-tokens", type=count, metavar="N", help=f"[default: {TOKENS_PER_STEP}]")
    group.add_argument("--max-model-len", type=count, metavar="N", help="[default: the model's]")
    group.add_argument("--num-kv-blocks", type=count, metavar="N", help="[default: what memory leaves]")
    group.add_argument("--gpu-memory-utilization", type=share, metavar="X", help=f"[default: {UTILIZATION}]")


def add_result(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--warmup",
        type=nonnegative,
        metavar="S",
        help="simulated seconds whose requests do not count [default: a tenth of --duration]",
    )
    group.add_argument("--slo", type=slo, metavar="BOUNDS", help="what a good request keeps, as in ttft=500ms,itl=50ms")
    group.add_argument("--name", metavar="TEXT", help="of the result [default: model, workload and load]")
    group.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, every request with it")


def main(options: argparse.Namespace) -> int:
    """0: done. 1: nothing was answered, or not even the lowest load kept the bounds. 2: it could not begin."""
    if options.requests is None and options.duration is None and options.workload != "trace":
        options.duration = DURATION
    try:
        common.check(options)
        return _sweep(options) if options.values or options.search else _run(options)
    except (Unusable, BadTrace, BadLoad, TooLittleMemory, UnsupportedModel, calibrated.Unreadable) as error:
        print(f"leobench: error: {error}", file=sys.stderr)
        return UNUSABLE


def _run(options: argparse.Namespace) -> int:
    if options.keep:
        raise BadLoad("--keep belongs to --search")
    run = Simulation(options).run(loads.from_options(options))
    if options.out is not None:
        write(run, options.out)
    print(table(run))
    return 0 if run.summary["requests"]["ok"] else FAILED


def _sweep(options: argparse.Namespace) -> int:
    check(options)
    if options.concurrency is not None or options.rate is not None:
        raise BadLoad("a sweep sets the load itself: leave out --users, --concurrency and --rate")

    async def find() -> Simulation:
        return Simulation(options)

    sweep = asyncio.run(Sweeper(options, find).sweep())
    if options.out is not None:
        write(sweep, options.out)
    print(rows(sweep))
    answered = any(run.summary["requests"]["ok"] for run in sweep.runs)
    return 0 if answered and (not sweep.search or sweep.search["highest"] is not None) else FAILED

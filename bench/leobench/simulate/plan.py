"""From options to servers in simulated time, and from a load on them to a result like a measured one."""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import leobench
from leobench import options as common
from leobench import workloads
from leobench.load import Load, describe
from leobench.options import Unusable
from leobench.records import Run
from leobench.simulate.calibrated import Calibrated, Calibration, read_calibration
from leobench.simulate.cluster import Cluster
from leobench.simulate.hardware import GPUS
from leobench.simulate.network import ITEMSIZES, KV_ITEMSIZES, network
from leobench.simulate.replica import Frontend, Replica, Setup
from leobench.simulate.roofline import Roofline
from leobench.simulate.routing import router
from leobench.simulate.users import Users
from leobench.simulate.work import CostModel
from leobench.summary import summarize
from leoserve.engine.scheduler import SchedulerLimits
from leoserve.model.capacity import BLOCK_SIZE, TOKENS_PER_STEP, Placement, cache_blocks

MODEL, GPU, UTILIZATION = "7b", "h200", 0.9
# On the machine of bench/results/gpu-h200.json a prompt of 896 had its first token by HTTP after 23.7 ms, where the
# engine alone needs 21.1 by its figure for 1024. A token's share of the API process as bench/apicost.py measures it.
GPU_FRONTEND = Frontend(request=2.6e-3, token=30e-6)
WARMUP_SHARE = 0.1  # of --duration


@dataclass(frozen=True, slots=True)
class Hardware:
    """What each replica is, and how many there are."""

    model: CostModel
    setup: Setup
    replicas: int
    about: dict[str, Any]  # for the result


def hardware(options: argparse.Namespace) -> Hardware:
    """Raises Unusable, and what reading a calibration or a network raises."""
    if options.calibration is None:
        return _gpus(options)
    for name in ("model", "gpu", "tensor_parallel", "dtype", "kv_dtype", "gpu_memory_utilization"):
        if getattr(options, name) is not None:
            raise Unusable(f"--calibration is of a machine and its model: leave out --{name.replace('_', '-')}")
    return _calibrated(options, read_calibration(options.calibration))


def _calibrated(options: argparse.Namespace, found: Calibration) -> Hardware:
    bounds = found.engine
    limits = SchedulerLimits(
        max_sequences=options.max_num_seqs or int(bounds["max_num_seqs"] or 0),
        max_tokens_per_step=options.max_num_batched_tokens or int(bounds["max_tokens_per_step"] or 0),
        max_model_len=options.max_model_len or int(bounds["max_model_len"] or 0),
        block_size=int(bounds["block_size"] or 0),
        deterministic=bool(bounds["deterministic"]),
        prefill_stretch=bounds["prefill_stretch"],
    )
    setup = Setup(
        limits=limits,
        num_blocks=options.num_kv_blocks or int(bounds["num_blocks"] or 0),
        ahead=0,
        window=found.window,
        frontend=Frontend(found.request, found.token),
    )
    about = {"model": found.model, "calibration": options.calibration.name, **found.machine}
    return Hardware(Calibrated(found), setup, options.gpus, about)


def _gpus(options: argparse.Namespace) -> Hardware:
    gpu, parallel, kv_dtype = GPUS[options.gpu or GPU], options.tensor_parallel or 1, options.kv_dtype or "auto"
    config = network(options.model or MODEL)
    if options.gpus % parallel:
        raise Unusable(f"--gpus {options.gpus} are no whole number of replicas of --tensor-parallel {parallel}")
    itemsize = ITEMSIZES.get(options.dtype or config.dtype)
    if itemsize is None:
        raise Unusable(f"products in {config.dtype} are not modelled: give --dtype bfloat16")
    try:
        placement = Placement(config, itemsize, KV_ITEMSIZES[kv_dtype] or itemsize, parallel)
    except ValueError as error:
        raise Unusable(str(error)) from error
    sequences, tokens = options.max_num_seqs or 256, options.max_num_batched_tokens or TOKENS_PER_STEP
    length = options.max_model_len or config.max_position_embeddings
    blocks = options.num_kv_blocks or cache_blocks(
        gpu.memory,
        placement,
        block_size=BLOCK_SIZE,
        max_model_len=length,
        max_num_seqs=sequences,
        tokens_per_step=tokens,
        utilization=options.gpu_memory_utilization or UTILIZATION,
    )
    limits = SchedulerLimits(
        max_sequences=sequences,
        max_tokens_per_step=max(tokens, sequences),
        max_model_len=length,
        block_size=BLOCK_SIZE,
    )
    window = config.sliding_window
    setup = Setup(limits=limits, num_blocks=blocks, ahead=1, window=window, frontend=GPU_FRONTEND)
    replicas = options.gpus // parallel
    about = {
        "model": options.model or MODEL,
        "gpu": gpu.name,
        "gpus": options.gpus,
        "tensor_parallel": parallel,
        "replicas": replicas,
        "dtype": options.dtype or config.dtype,
        "kv_dtype": kv_dtype,
        "cache_tokens_each": blocks * BLOCK_SIZE,
        "rates": gpu.provenance,
    }
    return Hardware(Roofline(gpu, placement, kv_dtype=kv_dtype), setup, replicas, about)


class Simulation:
    """Measures loads as a bench does, in simulated time. Every load meets servers that have just started."""

    interrupted = False

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.hardware = hardware(options)

    async def measure(self, load: Load) -> Run:
        """For a sweep, which awaits what measures."""
        return self.run(load)

    def run(self, load: Load) -> Run:
        """One load, with requests of its seed. Raises BadTrace."""
        options, own = self.options, self.hardware
        workload = workloads.from_options(argparse.Namespace(**vars(options) | {"seed": load.seed}))
        routing = router(options.routing, load.seed)
        cluster = Cluster([Replica(own.model, own.setup) for _ in range(own.replicas)], routing)
        Users(cluster, load, workload).begin()
        begin = time.perf_counter()
        gc.disable()  # a million records, and no cycle among them
        try:
            end = cluster.run()
        finally:
            gc.enable()
        self._say(cluster, end, time.perf_counter() - begin)
        warmup = options.warmup if options.warmup is not None else WARMUP_SHARE * (load.duration or 0.0)
        for record in cluster.records:
            record.warmup = record.sent < warmup
        run = Run(
            name=options.name or f"{own.about['model']}: {workload.name}, {describe(load)}",
            kind="simulated",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            measured_from=warmup,
            measured_until=max(warmup, min(end, load.duration or end)),
            workload=workload.parameters,
            load=load.parameters,
            target={
                "urls": [f"replica {number + 1}" for number in range(own.replicas)],
                "endpoint": "chat",
                "stream": True,
                "routing": options.routing,
                **own.about,
            },
            settings=common.told(options),
            versions={"leobench": leobench.__version__, "python": platform.python_version()},
            requests=cluster.records,
            samples=cluster.samples,
            slo=options.slo,
        )
        run.summary = summarize(run)
        return run

    def _say(self, cluster: Cluster, end: float, seconds: float) -> None:
        """How fast it went, and what of it nobody has measured."""
        count = len(cluster.records)
        print(f"{count} requests, {end:.0f} s in {seconds:.1f} s: {count / seconds:.0f} a second", file=sys.stderr)

"""A whole network of random weights on the device, and the server's engine around it, in this process.

Random weights compute as long as trained ones. They are drawn on the device, so that no checkpoint has to be written
and read for them.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import leokernels
from gpustages.paged import fill
from gpustages.place import Place
from gpustages.shapes import Shape
from leokernels.fused import triton_functions
from leokernels.product import Multiply
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Refused, Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model.device import DeviceRunner, device_runners
from leoserve.model.graphs import CudaRecorder, Recorder
from leoserve.model.llama import Llama


def random_network(place: Place, shape: Shape, kv_dtype: torch.dtype | None = None) -> Llama:
    """With this server's own kernels, all of them, and the matrix product that it takes here by default."""
    model = Llama(
        shape.config(place.dtype),
        dtype=place.dtype,
        device=place.device,
        attention="triton",
        fused=triton_functions("they are what is measured"),
        multiply=usual_product(place, shape),
        kv_dtype=kv_dtype,
    )
    for name, weight in model.destinations().items():
        if weight.dim() == 1:
            weight.fill_(1)
        else:
            weight.normal_(0, 1.0 if "embed" in name else shape.hidden**-0.5)
    return model


def usual_product(place: Place, shape: Shape) -> Multiply:
    """What the server multiplies by here unless it has to be deterministic."""
    return leokernels.choose_product(leokernels.Place(place.device, place.dtype, shape.head_dim)).multiply


def multiply_by(model: Llama, multiply: Multiply) -> None:
    """Use this matrix product from now on: for steps that are launched, and for graphs that are recorded, later."""
    for layer in model.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            linear.multiply = multiply
    model.head.multiply = multiply


def weight_bytes(model: Llama) -> int:
    """Bytes of weights that a decode step reads: all but the embedding's."""
    return sum(weight.nbytes for name, weight in model.destinations().items() if "embed" not in name)


def recorder(place: Place) -> Recorder:
    """Of CUDA graphs; on a CPU a recording is the function itself."""
    return CudaRecorder() if place.device.type == "cuda" else replayed


def replayed(body: Callable[[], None]) -> Callable[[], object]:
    body()
    return body


@dataclass(slots=True)
class Sizes:
    """Bounds of an engine."""

    slots: int
    length: int  # of a sequence, in tokens
    tokens: int  # of a step
    block_size: int
    sequences: int  # full ones that the cache holds

    @property
    def blocks(self) -> int:
        return self.sequences * -(-self.length // self.block_size) + 2 * self.slots


def new_runner(place: Place, model: Llama, sizes: Sizes) -> DeviceRunner:
    """With a cache of random numbers."""
    make = device_runners(
        model,
        [(0, model.config.vocab_size - 2)],
        block_size=sizes.block_size,
        max_num_seqs=sizes.slots,
        max_model_len=sizes.length,
    )
    runner = make(sizes.blocks)
    for cache in runner.key_value:
        fill(cache)
    return runner


@dataclass(slots=True)
class Engine:
    """The server's loop around a runner, driven by hand."""

    runner: DeviceRunner
    sizes: Sizes
    deterministic: bool = False  # of the scheduler; the model's product is its own matter
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # of outputs: when, and of how many sequences
    serial: int = 0

    def generate(self, batch: int, prompt: int, answer: int, *, ahead: int) -> float:
        """Prompts of random tokens, all answered greedily to the full length; seconds until the first output.

        When the outputs came is in `arrivals`. Raises RuntimeError when a request fails.
        """
        loop = self._loop(ahead)
        draw = random.Random(self.serial)
        for _ in range(batch):
            self.serial += 1
            tokens = [draw.randrange(3, 300) for _ in range(prompt)]
            params = SamplingParams(max_tokens=answer, temperature=0.0)
            request = Request(request_id=str(self.serial), prompt=tokens, params=params, arrival=float(self.serial))
            refused = loop.scheduler.admission.admit(request)
            if refused is not None:
                raise RuntimeError(refused.message)
            loop.submit(request)
        self.arrivals.clear()
        begin = time.perf_counter()
        loop.receive()
        while loop.step():
            pass
        return self.arrivals[0][0] - begin

    def gaps(self, batch: int) -> list[float]:
        """Milliseconds between outputs of steps in which every sequence got a token."""
        times = [when for when, count in self.arrivals if count == batch]
        found = [(later - earlier) * 1e3 for earlier, later in zip(times, times[1:], strict=False)]
        return found[1:] or found  # the first one after the prompts may hold some of their time

    def _loop(self, ahead: int) -> EngineLoop:
        sizes = self.sizes
        limits = SchedulerLimits(
            max_sequences=sizes.slots,
            max_tokens_per_step=sizes.tokens,
            max_model_len=sizes.length,
            block_size=sizes.block_size,
            prefix_caching=False,
            deterministic=self.deterministic,
        )
        admission = Admission(capacity=sizes.length, max_waiting=10_000, max_waiting_tokens=100_000_000)
        return EngineLoop(Scheduler(limits, BlockPool(sizes.blocks), admission), self.runner, self._take, ahead=ahead)

    def _take(self, message: StepOutputs | Refused) -> None:
        if isinstance(message, Refused):
            raise RuntimeError(message.message)
        for output in message.outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
        if message.outputs:
            self.arrivals.append((time.perf_counter(), len(message.outputs)))


@contextmanager
def engine(
    place: Place, model: Llama, sizes: Sizes, *, graphs: bool = True, deterministic: bool = False
) -> Iterator[Engine]:
    """An engine whose memory is given back afterwards."""
    runner = new_runner(place, model, sizes)
    if graphs:
        runner.record(recorder(place))
    made = Engine(runner, sizes, deterministic)
    try:
        yield made
    finally:
        del made.runner, runner
        release(place)


def release(place: Place) -> None:
    """Give back memory that nothing holds any more."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()

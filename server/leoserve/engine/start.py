"""From an EngineConfig to a loop that serves: what was left open is chosen here, and said with its reason."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from tqdm import tqdm

import leokernels
from leokernels import native
from leoserve.engine import gpu
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.config import EngineConfig
from leoserve.engine.loop import EngineLoop, StepRunner
from leoserve.engine.request import Ready, Refused, StepOutputs
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model import capacity
from leoserve.model.capacity import TooLittleMemory
from leoserve.model.config import ModelConfig, UnsupportedModel
from leoserve.model.graphs import CudaRecorder
from leoserve.model.linear import keeps_rows_apart, product_of
from leoserve.model.llama import Llama
from leoserve.model.memory import CachePlan, block_bytes, plan_cache, require_weights_fit, weight_bytes
from leoserve.model.runner import Runner
from leoserve.model.sampler import Sampler
from leoserve.model.step import Admitted, Row, SamplingParams, Step
from leoserve.model.weights import WeightsError, load_weights

if TYPE_CHECKING:
    from leoserve.model.device import DeviceRunner

log = logging.getLogger("leoserve.engine")

R = TypeVar("R", bound=StepRunner)

KV_DTYPES = {"auto": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
TOKENS_PER_STEP = {
    "cpu": 512,
    "cuda": capacity.TOKENS_PER_STEP,
}  # a CPU's steps stay short enough for those who generate
PREFILL_STRETCH = {"cpu": 2.5, "cuda": None}  # steps in flight at the same time are not measured one by one
SECONDS_BETWEEN_LINES = 5.0
LARGE = 1_000_000_000  # bytes of weights from which on each part of the start takes a second or more


class CannotStart(Exception):
    """One line that says what is wrong and what to do."""


def start_engine(config: EngineConfig, send: Callable[[StepOutputs | Refused], None]) -> tuple[EngineLoop, Ready]:
    """Load the model, allocate the cache and warm up. Raises CannotStart."""
    try:
        return _start(config, send)
    except (UnsupportedModel, WeightsError, TooLittleMemory, leokernels.UnsupportedAttention) as error:
        raise CannotStart(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise CannotStart(f"out of memory while starting: {error}; lower --kv-cache-memory") from error


def _start(config: EngineConfig, send: Callable[[StepOutputs | Refused], None]) -> tuple[EngineLoop, Ready]:
    device = choose_device(config.device)
    folder = Path(config.model)
    model_config = ModelConfig.from_folder(folder)
    dtype, dtype_reason = choose_dtype(config.dtype, model_config.dtype, device)
    threads = choose_threads(config.threads, device)
    max_model_len = choose_length(config.max_model_len, model_config)
    kv_dtype = KV_DTYPES[config.kv_dtype]
    place = leokernels.Place(
        device,
        dtype,
        model_config.head_dim,
        config.block_size,
        kv_dtype,
        deterministic=bool(config.deterministic),
    )
    log.info("device %s, %d threads; %s (%s)", device, threads, _name(dtype), dtype_reason)
    attention, fused = choose_kernels(place, config.attention)
    if config.deterministic is None:  # where it costs next to nothing
        place = replace(place, deterministic=_is_deterministic(place, attention.name))
    product = choose_product(place, fused)
    block_size = attention.block_size
    require_weights_fit(model_config, dtype, device)
    model = Llama(
        model_config,
        dtype=dtype,
        device=device,
        attention=attention.name,
        fused=fused,
        multiply=product.multiply,
        kv_dtype=kv_dtype,
    )
    num_bytes = _load(model, folder, model_config, config.progress)
    model.try_products(product.kinds_of_rows)
    if attention.name == "native" and product_of(dtype) == "native":
        native.use_threads(threads)
        torch.set_num_threads(1)
    limits = _limits(config, place, max_model_len, block_size)
    runner, plan = _start_runner(config, model, limits, capturable=attention.capturable)
    ahead = 1 if model.fused.name == "triton" and config.async_scheduling else 0
    ready = Ready(
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=plan.num_blocks,
        vocab_size=model_config.vocab_size,
        max_num_seqs=config.max_num_seqs,
        dtype=_name(dtype),
        device=str(device),
        attention=attention.name,
        weight_bytes=num_bytes,
    )
    scheduler = _scheduler(config, plan, limits)
    return EngineLoop(scheduler, runner, send, ahead=ahead), ready


def _is_deterministic(place: leokernels.Place, attention: str) -> bool:
    """Whether a request's bits do not depend on what runs beside it anyway, as on most CPUs."""
    return attention in ("cpu", "native") and keeps_rows_apart(place.dtype)


def _limits(config: EngineConfig, place: leokernels.Place, max_model_len: int, block_size: int) -> SchedulerLimits:
    tokens = config.max_num_batched_tokens or TOKENS_PER_STEP[place.device.type]
    limits = SchedulerLimits(
        max_sequences=config.max_num_seqs,
        max_tokens_per_step=max(tokens, config.max_num_seqs),
        max_model_len=max_model_len,
        block_size=block_size,
        prefix_caching=config.enable_prefix_caching,
        deterministic=place.deterministic,
        prefill_stretch=config.prefill_stretch or PREFILL_STRETCH[place.device.type],
    )
    log.info(
        "a step computes at most %d tokens of at most %d sequences", limits.max_tokens_per_step, limits.max_sequences
    )
    return limits


def _start_runner(
    config: EngineConfig, model: Llama, limits: SchedulerLimits, *, capturable: bool
) -> tuple[StepRunner, CachePlan]:
    """The runner for this device, warmed up, and the size of its cache."""
    if model.fused.name == "triton":
        return _start_measured(config, model, limits, _device_runners(config, model, limits, capturable=capturable))
    runners = _runners(config, model, limits)
    if model.device.type == "cuda":
        log.warning("steps are neither overlapped nor recorded as CUDA graphs: both need Triton's kernels")
        return _start_measured(config, model, limits, gpu.RunnerFactory(runners, None))
    plan = _plan(config, model, limits)
    runner = runners(plan.num_blocks)
    if weight_bytes(model.config, model.dtype) > LARGE:
        log.info("warming up")
    warm_up(runner, min(16, limits.max_model_len))
    return runner, plan


def _start_measured(
    config: EngineConfig, model: Llama, limits: SchedulerLimits, runners: gpu.RunnerFactory[R]
) -> tuple[R, CachePlan]:
    """A GPU's runner: what its steps need is measured before the cache is sized."""
    load = gpu.Load(
        max_num_seqs=limits.max_sequences,
        max_tokens=limits.max_tokens_per_step,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
    )
    log.info("compiling kernels and measuring the largest step")
    reserve = gpu.measure_reserve(runners, load, gpu.CudaMeter())
    plan = _plan(config, model, limits, reserve)
    return gpu.start_runner(runners, plan.num_blocks, load), plan


def _runners(config: EngineConfig, model: Llama, limits: SchedulerLimits) -> Callable[[int], Runner]:
    """Runners that compute while the host waits. Their sampler is made once."""
    sampler = Sampler(
        max_slots=limits.max_sequences,
        vocab_size=model.config.vocab_size,
        token_ranges=_token_ranges(config, model),
        device=model.device,
    )

    def make(num_blocks: int) -> Runner:
        return Runner(
            model,
            sampler,
            num_blocks=num_blocks,
            block_size=limits.block_size,
            max_num_seqs=limits.max_sequences,
            max_model_len=limits.max_model_len,
        )

    return make


def _device_runners(
    config: EngineConfig, model: Llama, limits: SchedulerLimits, *, capturable: bool
) -> gpu.RunnerFactory[DeviceRunner]:
    """Runners that compute while the host plans."""
    from leoserve.model.device import device_runners  # needs Triton

    make = device_runners(
        model,
        _token_ranges(config, model),
        block_size=limits.block_size,
        max_num_seqs=limits.max_sequences,
        max_model_len=limits.max_model_len,
    )

    def record(runner: DeviceRunner) -> None:
        graphs = runner.record(CudaRecorder())
        log.info("decode graphs: %d sizes up to %d rows", len(graphs.sizes), graphs.sizes[-1])

    if capturable and not config.enforce_eager:
        return gpu.RunnerFactory(make, record)
    why = "as --enforce-eager says" if config.enforce_eager else f"attention {model.attention} cannot be recorded"
    log.info("decode steps are launched kernel by kernel (%s)", why)
    return gpu.RunnerFactory(make, None)


def _token_ranges(config: EngineConfig, model: Llama) -> list[tuple[int, int]]:
    return config.token_ranges or [(0, model.config.vocab_size)]


def _plan(config: EngineConfig, model: Llama, limits: SchedulerLimits, reserve: int = 0) -> CachePlan:
    plan = plan_cache(
        model.config,
        dtype=model.kv_dtype,
        device=model.device,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_sequences,
        num_blocks=config.num_kv_blocks,
        memory_bytes=config.kv_cache_memory_bytes,
        utilization=config.gpu_memory_utilization,
        reserve=reserve,
    )
    _say_cache(plan, limits.block_size, model)
    return plan


def choose_device(asked: str) -> torch.device:
    """A GPU when there is one, unless told otherwise. Raises CannotStart when a GPU is asked for and none is there."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        built = f"its CUDA {torch.version.cuda} needs a driver that has it, see nvidia-smi"
        why = built if torch.version.cuda else "it is a build without CUDA"
        raise CannotStart(f"--device cuda: torch sees no GPU here; {why}; --device cpu does without")
    return torch.device("cuda", 0) if asked == "cuda" else torch.device("cpu")


def choose_dtype(asked: str, checkpoint: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of weights and cache, and why. Half precision on a CPU is bfloat16: its products run natively there."""
    if asked != "auto":
        return getattr(torch, asked), "as --dtype says"
    if device.type == "cpu" and checkpoint == "float16":
        return torch.bfloat16, "the checkpoint's float16 has no fast products on a CPU"
    return getattr(torch, checkpoint), "the checkpoint's"


def choose_threads(asked: int | None, device: torch.device) -> int:
    """Sets and returns torch's threads: all cores that this process may use."""
    threads = asked or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    torch.set_num_threads(threads)
    return threads


def choose_length(asked: int | None, config: ModelConfig) -> int:
    """Tokens of the longest sequence. Raises CannotStart above the model's context."""
    longest = config.max_position_embeddings
    if asked is not None and asked > longest:
        raise CannotStart(f"--max-model-len {asked}: this model's context is {longest} tokens")
    return asked or longest


def choose_kernels(place: leokernels.Place, asked: str) -> tuple[leokernels.Choice, leokernels.Fused]:
    """The kernels for this place, said with their reasons, and what stood in the way of better ones.

    Raises leokernels.UnsupportedAttention when the attention that is asked for does not fit.
    """
    attention = leokernels.choose(place, asked)
    fused = leokernels.choose_fused(place, attention.name)
    for name in attention.passed_over:
        log.warning("attention kernels that cannot be used here: %s", name)
    log.info("attention kernels: %s (%s)", attention.name, attention.reason)
    if place.device.type != "cpu":
        log.info("kernels of norms, rotary positions and gates: %s (%s)", fused.name, fused.reason)
    return attention, fused


def choose_product(place: leokernels.Place, fused: leokernels.Fused) -> leokernels.Product:
    """The matrix product for this place, said with its reason.

    Raises CannotStart where a request's bits may not depend on others and what is there cannot keep that promise.
    """
    try:
        product = leokernels.choose_product(place)
    except leokernels.UnsupportedProduct as error:
        raise CannotStart(f"--deterministic cannot be kept here, leave it out: {error}") from error
    if place.device.type == "cpu":
        name = product_of(place.dtype)
        if place.deterministic and not keeps_rows_apart(place.dtype):
            raise CannotStart(f"--deterministic cannot be kept here, leave it out: the matrix products are {name}'s")
        log.info("matrix products: %s (the fastest for %s here)", name, _name(place.dtype))
        return product
    if place.deterministic and fused.name != "triton":
        raise CannotStart(f"--deterministic cannot be kept here, leave it out: norms and gates are {fused.reason}")
    log.info("matrix products: %s (%s)", product.name, product.reason)
    return product


def warm_up(runner: Runner, length: int) -> None:
    """One prefill and one decode step, so that no client pays for lazily made buffers and plans."""
    params = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9, logprobs=1)
    tokens = [0] * max(1, length - 1)
    blocks = list(range(-(-length // runner.tables.block_size)))
    new = Admitted(params, 0, tokens, [])
    runner.launch(Step([Row(0, 0, tokens, first_new_block=0, new_blocks=blocks, samples=True, admitted=new)]))
    if length > 1:
        runner.launch(Step([Row(0, length - 1, None, first_new_block=0, new_blocks=[], samples=True, decodes=True)]))


def _scheduler(config: EngineConfig, plan: CachePlan, limits: SchedulerLimits) -> Scheduler:
    admission = Admission(
        capacity=min(limits.max_model_len, plan.num_blocks * limits.block_size),
        max_waiting=config.max_waiting_requests,
        max_waiting_tokens=config.max_waiting_tokens,
    )
    return Scheduler(limits, BlockPool(plan.num_blocks), admission)


def _load(model: Llama, folder: Path, config: ModelConfig, progress: bool) -> int:
    begin = time.monotonic()
    with WeightsProgress(progress) as bar:
        num_bytes = load_weights(model, folder, config, progress=bar)
    seconds = max(time.monotonic() - begin, 1e-9)
    log.info("weights: %.2f GB in %.1f s (%.2f GB/s)", num_bytes / 1e9, seconds, num_bytes / 1e9 / seconds)
    if num_bytes > LARGE:
        log.info("laying the weights out for this device's matrix products")
    model.prepare()
    return num_bytes


def _say_cache(plan: CachePlan, block_size: int, model: Llama) -> None:
    log.info(
        "key-value cache: %d blocks of %d tokens = %d tokens in %.2f GB (%s)",
        plan.num_blocks,
        block_size,
        plan.num_blocks * block_size,
        plan.num_blocks * plan.block_bytes / 1e9,
        plan.reason,
    )
    if model.kv_dtype is not model.dtype:
        plain = block_bytes(model.config, block_size, model.dtype)
        log.info(
            "it is of %s, with a scale for each token and head: %.2f times the tokens that %s would take",
            _name(model.kv_dtype),
            plain / plan.block_bytes,
            _name(model.dtype),
        )


class WeightsProgress:
    """A bar in GB and GB/s on a terminal; a line every few seconds elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self._bar = tqdm(
            desc="weights", unit="B", unit_scale=True, disable=not (enabled and sys.stderr.isatty()), leave=False
        )
        self._lines = enabled and not sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> WeightsProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are in place."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if self._lines and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            log.info("weights: %.1f of %.1f GB", done / 1e9, total / 1e9)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What the engine process is told at its start. It crosses the process boundary as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's part of the settings. `None` lets the engine choose, and say what it chose and why."""

    model: str  # a folder
    device: str = "auto"  # auto, cpu, cuda
    dtype: str = "auto"  # auto, bfloat16, float16, float32
    kv_dtype: str = "auto"  # auto, int8, fp8
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    prefill_stretch: float | None = None
    block_size: int | None = None
    num_kv_blocks: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    deterministic: bool | None = None
    async_scheduling: bool = True
    enforce_eager: bool = False
    attention: str = "auto"
    threads: int | None = None
    max_waiting_requests: int = 1024  # choices that may wait
    max_waiting_tokens: int = 4_000_000  # prompt tokens that may wait
    token_ranges: list[tuple[int, int]] = []  # [start, stop) ids of the tokenizer; rows outside are never sampled
    progress: bool = True
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"

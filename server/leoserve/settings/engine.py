"""How the engine plans, computes and keeps what it computed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from leoserve.settings.option import option


class EngineOptions(BaseModel):
    max_num_seqs: int = option(
        256,
        "Engine",
        "Most answers computed at the same time. Lower it for faster single answers under load, raise it for "
        "throughput on a large GPU.",
        ge=1,
    )
    max_num_batched_tokens: int | None = option(
        None,
        "Engine",
        "Token budget of one step, prompts and answers together. Lower it for smoother streams while long prompts "
        "arrive, raise it for faster prompts.",
        unit="tokens",
        unset="by device",
        ge=1,
    )
    prefill_stretch: float | None = option(
        None,
        "Engine",
        "How many times as long a step may take with a part of a long prompt as without, while answers are being "
        "generated. Lower it for smoother streams while long prompts arrive, raise it for faster long prompts.",
        unset="2.5 on a CPU, no bound on a GPU",
        ge=1,
    )
    kv_dtype: Literal["auto", "int8", "fp8"] = option(
        "auto",
        "Engine",
        "How the key/value cache is stored: auto as --dtype, int8 or fp8 with a scale for each token and head. 8 bits "
        "hold nearly twice the tokens and are read in half the time, for a small loss of precision; int8 loses less.",
    )
    block_size: int | None = option(
        None,
        "Engine",
        "Tokens in one block of the key/value cache. Change it only to compare kernels.",
        unit="tokens",
        unset="what the attention kernel likes best",
        ge=1,
        le=1024,
    )
    num_kv_blocks: int | None = option(
        None,
        "Engine",
        "Blocks of the key/value cache, instead of sizing it by memory. For tests and exact capacity planning.",
        unit="blocks",
        unset="as memory allows",
        ge=1,
    )
    kv_cache_memory: float | None = option(
        None,
        "Engine",
        "Memory of the key/value cache. Lower it when other programs need the memory, raise it for more or longer "
        "chats at once.",
        unit="GiB",
        unset="as memory allows",
        gt=0,
    )
    gpu_memory_utilization: float = option(
        0.9,
        "Engine",
        "Share of the GPU's memory that weights, cache and work space may take. Lower it when the GPU is shared.",
        gt=0,
        le=1,
    )
    enable_prefix_caching: bool = option(
        True,
        "Engine",
        "Keep computed prompt beginnings and share them between requests. Turn it off to measure without it.",
    )
    deterministic: bool | None = option(
        None,
        "Engine",
        "Give a request the same tokens and log-probabilities, bit by bit, whatever runs beside it. On a GPU it "
        "needs Triton and costs speed; elsewhere it costs only that generated tokens are not shared as prompt "
        "beginnings. Turn it off to share them.",
        unset="with the cpu attention yes, else no",
    )
    async_scheduling: bool = option(
        True,
        "Engine",
        "Plan and launch a GPU's next step while it computes the one before. Turn it off to debug.",
    )
    enforce_eager: bool = option(
        False,
        "Engine",
        "Launch a GPU's decode steps kernel by kernel instead of as CUDA graphs: slower, for debugging, and to start "
        "faster with less memory.",
    )
    attention: str = option(
        "auto",
        "Engine",
        "Attention kernel: native, cpu, triton, flash_attn, torch_varlen or reference; auto takes the fastest that "
        "runs here and says why. Name another to compare, or to step around a faulty one.",
        metavar="NAME",
    )
    tensor_parallel_size: int = option(
        1,
        "Engine",
        "GPUs that share every layer of the model. This version computes on one device: leave it at 1.",
        unit="GPUs",
        ge=1,
    )
    threads: int | None = option(
        None,
        "Engine",
        "Threads that compute on the CPU. Lower it when other programs need the cores.",
        unset="one per core this process may use",
        ge=1,
    )
    seed: int = option(
        0,
        "Engine",
        "Base of the seeds drawn for requests that bring none. Change it for other answers from the same requests.",
        ge=0,
        lt=2**63,
    )

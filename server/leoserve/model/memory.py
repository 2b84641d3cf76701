"""How much memory there is, and how much of it the key-value cache gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from leoserve.model import footprint
from leoserve.model.capacity import TooLittleMemory
from leoserve.model.config import ModelConfig

GIB = 1 << 30
CPU_CACHE_LIMIT = 4 * GIB  # by default; a host has other uses for its memory
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How many blocks to allocate, and why."""

    num_blocks: int
    block_bytes: int  # keys and values of all layers, and their scales
    reason: str


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: free device memory, or what the host or the container has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _cgroup_headroom())


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block of a cache of `dtype`."""
    return footprint.block_bytes(config, block_size, dtype.itemsize)


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the network's parameters in `dtype`."""
    return footprint.weight_bytes(config, dtype.itemsize)


def require_weights_fit(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raise TooLittleMemory before a load that cannot end well."""
    needed, available = weight_bytes(config, dtype), available_bytes(device)
    if needed > available:
        smaller = ""
        if dtype is torch.float32:
            smaller = f"; --dtype bfloat16 needs {_gib(needed // 2)}"
        raise TooLittleMemory(
            f"the weights need {_gib(needed)} in {str(dtype).removeprefix('torch.')} and {_gib(available)} are "
            f"available on {device}{smaller or '; take a smaller model or a larger machine'}"
        )


def plan_cache(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    num_blocks: int | None,
    memory_bytes: int | None,
    utilization: float,
    reserve: int = 0,
) -> CachePlan:
    """Size the cache of `dtype`, with the weights already loaded.

    An explicit `num_blocks` or `memory_bytes` is taken as it is. Otherwise: on a GPU what `utilization` of its memory
    leaves; on a CPU half of what is available, at most 4 GiB or one sequence, never more than `max_num_seqs` full
    sequences can use. `reserve` bytes of a GPU are left for what steps need beside the cache. Raises TooLittleMemory
    when not even one sequence of `max_model_len` fits.
    """
    size = block_bytes(config, block_size, dtype)
    per_sequence = -(-max_model_len // block_size)
    useful = footprint.useful_blocks(max_model_len, block_size, max_num_seqs)
    if num_blocks is not None:
        blocks, reason = num_blocks, "as --num-kv-blocks says"
    elif memory_bytes is not None:
        blocks, reason = memory_bytes // size, f"{_gib(memory_bytes)} as --kv-cache-memory says"
    else:
        budget, reason = _default_budget(device, utilization, per_sequence * size, reserve)
        blocks = budget // size
        if blocks > useful:
            blocks, reason = useful, f"enough for {max_num_seqs} sequences of {max_model_len} tokens"
    available = available_bytes(device) - reserve
    if blocks < per_sequence:
        raise TooLittleMemory(_too_small(blocks, size, block_size, per_sequence, available))
    if blocks * size > available:
        raise TooLittleMemory(
            f"the key-value cache would take {_gib(blocks * size)} and {_gib(available)} are available: "
            f"lower --kv-cache-memory or --num-kv-blocks (at most {available // size} blocks fit)"
        )
    return CachePlan(blocks, size, reason)


def _default_budget(device: torch.device, utilization: float, one_sequence: int, reserve: int) -> tuple[int, str]:
    available = available_bytes(device)
    if device.type == "cuda":
        total = int(torch.cuda.mem_get_info(device)[1])
        budget = footprint.gpu_budget(total, available, reserve, utilization)
        return budget, f"what {utilization:.0%} of the GPU's memory leaves beside weights and the largest step"
    limit = max(CPU_CACHE_LIMIT, one_sequence)
    if available // 2 < limit:
        return max(available // 2, min(available, one_sequence)), f"of the {_gib(available)} available"
    return limit, f"the default on a CPU is {_gib(CPU_CACHE_LIMIT)} or one full sequence"


def _too_small(blocks: int, size: int, block_size: int, per_sequence: int, available: int) -> str:
    shorter = f"--max-model-len {blocks * block_size} fits, or " if blocks > 0 else ""
    return (
        f"one sequence of {per_sequence * block_size} tokens needs {_gib(per_sequence * size)} of key-value cache and "
        f"it gets {_gib(max(blocks, 0) * size)} ({_gib(available)} available): {shorter}give it "
        f"more by --kv-cache-memory"
    )


def _cgroup_headroom() -> int:
    """What the container's limit leaves (cgroup v2), page cache counted as free."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if limit == "max":
        return 1 << 62
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"

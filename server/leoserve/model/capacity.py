"""What fits a GPU: the arithmetic by which the server sizes its cache, with a model in place of what it measures.

On an H200 it tells as many blocks as the server gave itself (bench/results/gpu-h200.json), within 1%. No torch: who
plans needs no device.
"""

from __future__ import annotations

from dataclasses import dataclass

from leoserve.model import footprint
from leoserve.model.config import ModelConfig

GIB = 1 << 30
TOKENS_PER_STEP = 8192  # of a GPU, unless told otherwise
BLOCK_SIZE = 64  # tokens; what the GPU's attention likes best

# Of an H200 (bench/results/gpu-h200.json): what the driver, kernels and torch keep beside what a server asks for,
# and the graphs of decode steps of up to 64 rows of 7B.
TAKEN = 1.88e9
GRAPHS = 0.32e9

GPU_MEMORY = {  # bytes as the driver tells, which is less than the name says
    "l4": int(22.0 * GIB),  # an A10G has as much
    "rtx-4090": int(23.5 * GIB),
    "l40s": int(44.5 * GIB),
    "a100-80": int(79.2 * GIB),
    "h100": int(79.2 * GIB),
    "h200": int(139.8 * GIB),
    "b200": int(178.3 * GIB),
}


class TooLittleMemory(Exception):
    """Weights or cache do not fit; the message says by how much."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A network on the GPUs of one replica."""

    config: ModelConfig
    itemsize: int  # of weights and activations
    kv_itemsize: int
    parallel: int  # GPUs that share every layer (tensor parallelism)

    def __post_init__(self) -> None:
        """Raises ValueError when heads do not divide among the GPUs."""
        if self.config.num_kv_heads % self.parallel or self.config.num_heads % self.parallel:
            raise ValueError(f"{self.config.num_kv_heads} KV heads do not divide among {self.parallel} GPUs")

    @property
    def weight_bytes(self) -> int:
        """Of each GPU."""
        return footprint.weight_bytes(self.config, self.itemsize) // self.parallel


def reserve_bytes(placement: Placement, tokens_per_step: int) -> int:
    """What the largest step and the decode graphs need: activations of the widest place in a layer, and graphs."""
    config = placement.config
    width = 3 * config.intermediate_size / placement.parallel + 4 * config.hidden_size
    return int(tokens_per_step * width * placement.itemsize + GRAPHS)


def cache_blocks(
    memory: int,
    placement: Placement,
    *,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    tokens_per_step: int,
    utilization: float,
) -> int:
    """Blocks of the cache on GPUs of `memory` bytes; each lies in equal parts on all GPUs of the replica.

    Raises TooLittleMemory where not even one sequence of `max_model_len` fits.
    """
    config, parallel = placement.config, placement.parallel
    available = int(memory - TAKEN - placement.weight_bytes)
    budget = footprint.gpu_budget(memory, available, reserve_bytes(placement, tokens_per_step), utilization)
    blocks = budget // (footprint.block_bytes(config, block_size, placement.kv_itemsize) // parallel)
    if blocks * block_size < max_model_len:
        shorter = f"; --max-model-len {blocks * block_size} fits" if blocks > 0 else ""
        raise TooLittleMemory(
            f"weights of {placement.weight_bytes / GIB:.1f} GiB leave {budget / GIB:.1f} of {memory / GIB:.1f} GiB for "
            f"the cache, less than one sequence of {max_model_len} tokens needs{shorter}"
        )
    return min(blocks, footprint.useful_blocks(max_model_len, block_size, max_num_seqs))

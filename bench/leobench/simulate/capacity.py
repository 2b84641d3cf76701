"""How many blocks of cache a GPU has left: the server's own arithmetic, with a model in place of its measurements."""

from __future__ import annotations

from dataclasses import dataclass

from leobench.simulate.hardware import Gpu
from leoserve.model import footprint
from leoserve.model.config import ModelConfig

# Of an H200 (bench/results/gpu-h200.json): what the driver, kernels and torch keep beside what a server asks for,
# and the graphs of decode steps of up to 64 rows of 7B.
TAKEN = 1.88e9
GRAPHS = 0.32e9


class TooLittleMemory(ValueError):
    """A network and one full sequence do not fit."""


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


def reserve_bytes(placement: Placement, tokens_per_step: int) -> int:
    """What the largest step and the decode graphs need: activations of the widest place in a layer, and graphs."""
    config = placement.config
    width = 3 * config.intermediate_size / placement.parallel + 4 * config.hidden_size
    return int(tokens_per_step * width * placement.itemsize + GRAPHS)


def cache_blocks(
    gpu: Gpu,
    placement: Placement,
    *,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    tokens_per_step: int,
    utilization: float,
) -> int:
    """Blocks of the cache; each lies in equal parts on all GPUs of the replica. Raises TooLittleMemory."""
    config, parallel = placement.config, placement.parallel
    weights = footprint.weight_bytes(config, placement.itemsize) // parallel
    available = int(gpu.memory - TAKEN - weights)
    budget = footprint.gpu_budget(gpu.memory, available, reserve_bytes(placement, tokens_per_step), utilization)
    blocks = budget // (footprint.block_bytes(config, block_size, placement.kv_itemsize) // parallel)
    if blocks * block_size < max_model_len:
        raise TooLittleMemory(
            f"{parallel} × {gpu.name}: weights of {weights / 1e9:.1f} GB each leave {budget / 1e9:.1f} GB of cache, "
            f"less than one sequence of {max_model_len} tokens needs"
        )
    return min(blocks, footprint.useful_blocks(max_model_len, block_size, max_num_seqs))

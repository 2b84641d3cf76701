"""Which stages there are, in which order, and how much of the time each may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustages.place import Place

# One thing that was measured or checked. `name` is always there; see results.py for what the table reads.
Measurement = dict[str, Any]
StageFunction = Callable[["Place"], Iterator[Measurement]]


@dataclass(frozen=True, slots=True)
class Stage:
    """`function` is module:name, imported in the stage's own process. `seconds` is its share of the whole."""

    name: str
    number: int
    title: str
    seconds: float
    function: str

    def load(self) -> StageFunction:
        module, _, name = self.function.partition(":")
        found: StageFunction = getattr(importlib.import_module(module), name)
        return found


def brief(error: Exception, length: int = 200) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:length]}"


# Seconds are about half as many again as an H200 with Triton 3.6 took, and twice as many where it was few.
STAGES = (
    Stage("machine", 1, "The machine and its ceilings", 25, "gpustages.machine:measure"),
    Stage("kernels", 2, "Kernels against float32, and alone against in a batch", 60, "gpustages.checks:check"),
    Stage("attention", 3, "Attention beside PyTorch's FlashAttention-2", 60, "gpustages.attention:measure"),
    Stage("graphs", 4, "CUDA graphs", 30, "gpustages.recording:measure"),
    Stage("engine", 5, "7B in one process", 65, "gpustages.serving:measure_7b"),
    Stage("http", 5, "7B through HTTP", 70, "gpustages.overhttp:measure"),
    Stage("transformers", 5, "7B by transformers' continuous batching", 45, "gpustages.rival:measure"),
    Stage("deterministic", 5, "What determinism costs", 35, "gpustages.deterministic:measure"),
    Stage("larger", 6, "13B, and caches of 8 bits", 75, "gpustages.serving:measure_larger"),
    Stage("chain", 7, "A step's kernels in a chain, and its products", 45, "gpustages.chain:measure"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
TOTAL_SECONDS = sum(stage.seconds for stage in STAGES)  # under nine minutes

"""Where a stage runs, and with which sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gpustages.timing import LEAST_RUNS, Stopwatch, device_of


class NoGpu(Exception):
    """There is nothing to measure."""


@dataclass(slots=True)
class Place:
    """A device, the dtype of its measurements, and what is known of it.

    `tiny`: on a CPU, in float32 (Triton's interpreter has no right bfloat16 products), with small sizes.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    scratch: Path
    ceilings: dict[str, float]
    deadline: float
    stopwatch: Stopwatch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        milliseconds, least_runs = (0, 1) if self.tiny else (60, LEAST_RUNS)
        self.stopwatch = Stopwatch(device_of(self.device), milliseconds, least_runs)

    @classmethod
    def here(cls, *, tiny: bool, scratch: Path, ceilings: dict[str, float], deadline: float) -> Place:
        """Raises NoGpu unless `tiny`."""
        torch.manual_seed(0)
        if tiny:
            torch.set_num_threads(1)
            return cls(torch.device("cpu"), torch.float32, tiny, scratch, ceilings, deadline)
        if not torch.cuda.is_available():
            raise NoGpu("torch sees no GPU here; --tiny runs the program on a CPU")
        return cls(torch.device("cuda", 0), torch.bfloat16, tiny, scratch, ceilings, deadline)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def bytes_a_second(self) -> float:
        """The copy bandwidth that was measured here, or else an H200's."""
        return self.ceilings.get("gb_s", 4300.0) * 1e9

    @property
    def operations_a_second(self) -> float:
        """Of a large matrix product, as it was measured here, or else an H200's."""
        return self.ceilings.get("tflop_s", 790.0) * 1e12

    @property
    def eight_bit(self) -> tuple[torch.dtype, ...]:
        """Dtypes of 8-bit caches; Triton's interpreter does not round right to float8."""
        return (torch.int8,) if self.tiny else (torch.int8, torch.float8_e4m3fn)

    def synchronize(self) -> None:
        self.stopwatch.device.synchronize()

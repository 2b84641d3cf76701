"""GPUs in numbers: what their datasheets promise, and what of it was measured.

A datasheet's figures are ceilings that nothing reaches. How much of them a copy and a large product do reach was
measured on an H200 with `bench/gpu.py` (`bench/results/gpu-h200.json`); the same shares are assumed of GPUs that nobody
has measured, and `provenance` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from leoserve.model.capacity import GPU_MEMORY

COPY_SHARE = 4289.3 / 4800  # of the datasheet's bandwidth: a copy, on an H200
PRODUCT_SHARE = 752.7 / 989  # of the datasheet's operations: a product of 8192, on an H200


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Rates are the ones that are reached, not the datasheet's."""

    name: str
    memory: int  # bytes, as the driver says
    bandwidth: float  # bytes a second, of a copy
    operations: float  # a second, of a large product in bfloat16 with sums in float32
    link: float  # bytes a second to other GPUs, in one direction
    link_latency: float  # seconds of one all-reduce of a few bytes
    provenance: str


def _from_datasheet(name: str, memory: int, gb_s: float, tflop_s: float, link_gb_s: float, latency: float) -> Gpu:
    return Gpu(
        name,
        memory,
        gb_s * 1e9 * COPY_SHARE,
        tflop_s * 1e12 * PRODUCT_SHARE,
        link_gb_s * 1e9,
        latency,
        f"datasheet: {gb_s:.0f} GB/s, {tflop_s:.0f} TFLOP/s, {link_gb_s:.0f} GB/s between GPUs; of these the shares "
        f"that an H200 was measured to reach; links as the datasheet says, not measured",
    )


NVLINK, PCIE = 10e-6, 25e-6  # seconds of a small all-reduce; assumed, not measured

# Links: NVLink 4 (450 GB/s a direction), NVLink 3 (300), PCIe 4.0 x16 (32). Operations: dense, without the datasheet's
# sparsity.
GPUS = {
    "h200": Gpu(
        "NVIDIA H200",
        GPU_MEMORY["h200"],
        4289.3e9,
        752.7e12,
        450e9,
        NVLINK,
        "measured: copy and product of 8192 on an H200 (bench/results/gpu-h200.json); links from the datasheet",
    ),
    "h200-datasheet": _from_datasheet("NVIDIA H200", GPU_MEMORY["h200"], 4800, 989, 450, NVLINK),
    "h100": _from_datasheet("NVIDIA H100 SXM", GPU_MEMORY["h100"], 3350, 989, 450, NVLINK),
    "a100-80": _from_datasheet("NVIDIA A100 SXM 80 GB", GPU_MEMORY["a100-80"], 2039, 312, 300, NVLINK),
    "l40s": _from_datasheet("NVIDIA L40S", GPU_MEMORY["l40s"], 864, 362, 32, PCIE),
    "rtx-4090": _from_datasheet("NVIDIA GeForce RTX 4090", GPU_MEMORY["rtx-4090"], 1008, 165, 32, PCIE),
}

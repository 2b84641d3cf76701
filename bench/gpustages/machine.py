"""Stage 1: what this machine is, how fast it copies and multiplies, and what LeoLM's matrix products reach."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from gpustages.place import Place
from gpustages.shapes import SEVEN, SEVENTY, THIRTEEN, TINY, Shape
from gpustages.stages import Measurement

PACKAGES = ("torch", "triton", "numpy", "transformers", "flash-attn", "safetensors", "tokenizers")
SERVER_NEEDS = ("fastapi", "httptools", "httpx2", "llguidance", "msgspec", "prometheus_client", "psutil", "pydantic",
                "pydantic_settings", "sentencepiece", "tqdm", "uvicorn",
                "uvloop", "zmq")  # fmt: skip
COLD_BYTES = 256 << 20  # of weights that follow each other, more than any cache holds
SMALL = (1, 8, 16, 64, 224)  # rows of decoding, bound by memory
LARGE = (512, 2048, 8192)  # rows of prompts, bound by arithmetic


def measure(place: Place) -> Iterator[Measurement]:
    """Ceilings first: everything later is held against them."""
    yield {"name": "versions", "note": versions(), "versions": versions()}
    yield {"name": "device", "note": device(place)}
    yield copy_bandwidth(place)
    yield square_product(place)
    yield read_bandwidth(place)
    for shape in (TINY,) if place.tiny else (SEVEN, THIRTEEN, SEVENTY):
        yield from products(place, shape)


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and what of the server's needs is missing."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    missing = [module for module in SERVER_NEEDS if importlib.util.find_spec(module) is None]
    return found | {"missing for the server": ", ".join(missing) or "nothing"}


def device(place: Place) -> dict[str, object]:
    """Its name, what it has, and how it stands: clocks and temperature are read, never set."""
    if place.device.type != "cuda":
        return {"name": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(place.device)
    found: dict[str, object] = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "L2 MB": round(properties.L2_cache_size / 1e6),
        "memory GiB": round(properties.total_memory / (1 << 30), 1),
    }
    if shutil.which("nvidia-smi"):
        query = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
        found[query] = said.stdout.strip()
    return found


def copy_bandwidth(place: Place) -> Measurement:
    """Of a large copy within the device's memory, bytes read plus bytes written."""
    source = _random(place, (4096 if place.tiny else 4 << 30) // 2)
    target = torch.empty_like(source)
    timing = place.stopwatch.measure(lambda: target.copy_(source), graph=False)
    return {"name": "copy", "ceiling": "gb_s", "gb_s": 2 * source.nbytes / timing.ms / 1e6, **timing.entry()}


def square_product(place: Place) -> Measurement:
    """Of a large square matrix product on random data."""
    size = 64 if place.tiny else 8192
    left, right = (_random(place, size, size) for _ in range(2))
    out = torch.empty_like(left)
    timing = place.stopwatch.measure(lambda: torch.mm(left, right, out=out), graph=False)
    rate = 2 * size**3 / timing.ms / 1e9
    return {"name": f"product of {size}", "ceiling": "tflop_s", "tflop_s": rate, **timing.entry()}


def read_bandwidth(place: Place) -> Measurement:
    """Of a maximum over a large tensor: what a kernel that writes nothing reaches, as decoding's do."""
    source = _random(place, (4096 if place.tiny else 4 << 30) // 2)
    timing = place.stopwatch.measure(lambda: torch.max(source), graph=False)
    return {"name": "read (maximum)", "gb_s": source.nbytes / timing.ms / 1e6, **timing.entry()}


def products(place: Place, shape: Shape) -> Iterator[Measurement]:
    """y = x Wᵀ of one layer and of the head, over enough different weights that none is cached."""
    for name, (columns, rows) in shape.products().items():
        copies = 1 if place.tiny else max(1, -(-COLD_BYTES // (columns * rows * place.dtype.itemsize)))
        weights = [_random(place, rows, columns) for _ in range(copies)]
        for count in (1, 8, 64) if place.tiny else SMALL + LARGE:
            x = _random(place, count, columns)
            timing = place.stopwatch.measure(*(functools.partial(F.linear, x, weight) for weight in weights))
            title = f"{shape.name} {name} {columns}×{rows}, {count} rows"
            moved = (columns * rows + count * (columns + rows)) * place.dtype.itemsize
            small = {"gb_s": moved / timing.ms / 1e6}
            large = {"tflop_s": 2 * count * columns * rows / timing.ms / 1e9}
            yield {"name": title, **(small if count in SMALL else large), **timing.entry()}
        yield same_bits(place, f"{shape.name} {name}", weights[0])


def same_bits(place: Place, name: str, weight: torch.Tensor) -> Measurement:
    """In batches of which sizes the first row has other bits than alone. None of it is wrong."""
    x = _random(place, 256, weight.shape[1])
    alone = F.linear(x[:1], weight)
    counts = (2, 4, 8, 16, 32, 64, 128, 256)
    differ = [count for count in counts if not torch.equal(F.linear(x[:count], weight)[:1], alone)]
    return {"name": f"{name}: rows beside which the first row's bits change", "note": differ or "none"}


def _random(place: Place, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=place.dtype, device=place.device)

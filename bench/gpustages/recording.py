"""Stage 4: CUDA graphs of 7B's decode steps: how long recording takes, what memory, and what replaying gains."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from gpustages.network import Sizes, new_runner, random_network, recorder, weight_bytes
from gpustages.place import Place
from gpustages.shapes import SEVEN, TINY
from gpustages.stages import Measurement
from leoserve.model.device import DeviceRunner
from leoserve.model.graphs import DecodeGraphs

CONTEXT = 1000


def measure(place: Place) -> Iterator[Measurement]:
    """Also: that a replay has the same bits as what it recorded, at sizes with and without padding."""
    shape = TINY if place.tiny else SEVEN
    sizes = Sizes(3, 32, 32, 16, 3) if place.tiny else Sizes(256, 8192, 8192, 64, 14)
    context = 20 if place.tiny else CONTEXT
    begin = time.perf_counter()
    model = random_network(place, shape)
    place.synchronize()
    note = f"{weight_bytes(model) / 1e9:.2f} GB read in a step; made in {time.perf_counter() - begin:.1f} s"
    yield {"name": f"{shape.name} of random weights", "note": note}
    runner = new_runner(place, model, sizes)
    place_slots(runner, context)
    graphs, recorded = record(place, runner)
    yield recorded
    for batch in (3,) if place.tiny else (1, 3, 8, 64, 100, 256):
        yield from replay(place, runner, graphs, batch, context, weight_bytes(model))


def place_slots(runner: DeviceRunner, context: int) -> None:
    """Blocks for every slot up to `context` positions. The last, which is written, is its own; others may be shared."""
    slots, width = runner.max_num_seqs, -(-context // runner.block_size)
    shared = runner.key_value[0].keys.shape[0] - slots
    table = torch.arange(slots * width, device=runner.device, dtype=torch.int32).view(slots, width) % shared
    table[:, -1] = torch.arange(slots, device=runner.device) + shared
    runner.tables[:, :width] = table


def record(place: Place, runner: DeviceRunner) -> tuple[DecodeGraphs, Measurement]:
    """All sizes. Compiling comes before, and is not counted."""
    slots, positions = _inputs(place, 1, 5)
    begin = time.perf_counter()
    runner._decode(slots, positions)
    place.synchronize()
    compiled = time.perf_counter() - begin
    before = _free(place)
    begin = time.perf_counter()
    graphs = runner.record(recorder(place))
    place.synchronize()
    seconds = time.perf_counter() - begin
    taken = before - _free(place)
    note = f"{len(graphs.sizes)} sizes in {seconds:.2f} s and {taken / (1 << 20):.0f} MiB; "
    note += f"the first step, with compiling: {compiled:.1f} s"
    return graphs, {"name": "recording", "seconds": seconds, "bytes": taken, "note": note}


def replay(
    place: Place, runner: DeviceRunner, graphs: DecodeGraphs, batch: int, context: int, weights: int
) -> Iterator[Measurement]:
    """A step by its recording and kernel by kernel: the same bits, and how long each takes."""
    size = graphs.size_for(batch)
    if size is None:
        raise ValueError(f"no recording holds {batch} rows")
    slots, positions = _inputs(place, batch, context - 1)
    padded = torch.nn.functional.pad(torch.stack([slots, positions]), (0, size - batch), value=-1)
    eager = runner._decode(slots, positions).clone()
    found = graphs.replay(padded, size)[:batch].clone()
    alone = graphs.replay(padded[:, :1], 1)[:1].clone()
    as_many = runner._decode(*padded)[:batch]
    yield {"name": f"replay of {batch} rows as {size}: the bits of what it recorded", "ok": torch.equal(found, as_many)}
    yield {
        "name": f"the first of {batch} rows against the row alone",
        "note": f"error {_error(found[:1], alone):.2e}; padded or not {_error(found, eager):.2e} (0: the same)",
    }
    config = runner.model.config
    key = config.num_layers * config.num_kv_heads * config.head_dim * place.dtype.itemsize
    moved = weights + batch * context * 2 * key
    for name, timing in (
        ("replay", place.stopwatch.measure(lambda: graphs.replay(padded, size), graph=False)),
        ("eager", place.stopwatch.measure(lambda: runner._decode(slots, positions), graph=False)),
    ):
        rate = moved / timing.ms / 1e6
        yield {"name": f"network's step, B{batch}, {context} keys, {name}", "gb_s": rate, **timing.entry()}


def _inputs(place: Place, batch: int, position: int) -> tuple[Tensor, Tensor]:
    slots = torch.arange(batch, dtype=torch.int32, device=place.device)
    return slots, torch.full((batch,), position, dtype=torch.int32, device=place.device)


def _free(place: Place) -> int:
    return int(torch.cuda.mem_get_info(place.device)[0]) if place.device.type == "cuda" else 0


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())

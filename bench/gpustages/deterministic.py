"""Stage 5: what it costs that a row's bits do not depend on others: product by product, and in 7B end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from gpustages.network import engine, multiply_by, random_network, usual_product
from gpustages.place import Place
from gpustages.serving import prompts, request, sizes, time_per_token
from gpustages.shapes import SEVEN, TINY, Shape
from gpustages.stages import Measurement
from leokernels.product import Multiply, torch_linear
from leokernels.triton.matmul import linear

COLD_BYTES = 256 << 20  # of weights that follow each other, more than any cache holds
PROMPT = 4096
RATES = ("tokens_s", "tflop_s")


def measure(place: Place) -> Iterator[Measurement]:
    """Products of 7B, ours beside the library's, then the engine with ours and with what it takes by default."""
    shape = TINY if place.tiny else SEVEN
    for name, (columns, rows) in shape.products().items():
        yield from product(place, f"{shape.name} {name} {columns}×{rows}", columns, rows)
    usual = list[Measurement]()
    for entry in served(place, shape, usual_product(place, shape), deterministic=False):
        usual.append(entry)
        yield entry
    for number, entry in enumerate(served(place, shape, linear, deterministic=True)):
        yield entry
        yield cost(entry, usual[number])


def product(place: Place, title: str, columns: int, rows: int) -> Iterator[Measurement]:
    """y = x Wᵀ over enough different weights that none is cached, and how near the roofline each of the two is.

    The roofline: the larger of the times that its bytes and its operations take at the machine's ceilings.
    """
    itemsize = place.dtype.itemsize
    copies = 1 if place.tiny else max(1, -(-COLD_BYTES // (columns * rows * itemsize)))
    weights = [torch.randn(rows, columns, dtype=place.dtype, device=place.device) for _ in range(copies)]
    for count in (1, 20) if place.tiny else (1, 8, 64, 512, PROMPT):
        x = torch.randn(count, columns, dtype=place.dtype, device=place.device)
        moved = (columns * rows + count * (columns + rows)) * itemsize
        operations = 2 * count * columns * rows
        floor = max(moved / place.bytes_a_second, operations / place.operations_a_second) * 1e3
        taken = {}
        for name, multiply in (("ours", linear), ("torch", torch_linear)):
            timing = place.stopwatch.measure(*calls(multiply, x, weights))
            taken[name] = timing.ms
            bound = {"gb_s": moved / timing.ms / 1e6} if count <= 64 else {"tflop_s": operations / timing.ms / 1e9}
            share = {"of_roofline": floor / timing.ms}
            yield {"name": f"{title}, {count} rows, {name}", **bound, **share, **timing.entry()}
        note = f"{taken['ours'] / taken['torch']:.2f} times as long; of the roofline {floor / taken['ours']:.0%}, "
        note += f"torch's {floor / taken['torch']:.0%}"
        yield {"name": f"{title}, {count} rows, ours beside torch's", "note": note}


def calls(multiply: Multiply, x: torch.Tensor, weights: list[torch.Tensor]) -> list[Callable[[], object]]:
    """One for each weight."""
    return [partial(multiply, x, weight) for weight in weights]


def served(place: Place, shape: Shape, multiply: Multiply, *, deterministic: bool) -> Iterator[Measurement]:
    """Tokens a second alone and in a large batch, and a prompt."""
    batches = (1, 2) if place.tiny else (1, 64)
    note = ", deterministic" if deterministic else ""
    model = random_network(place, shape)
    multiply_by(model, multiply)
    with engine(place, model, sizes(place, batches[-1]), deterministic=deterministic) as made:
        made.generate(*request(place, 2), ahead=1)  # compiles
        for batch in batches:
            yield time_per_token(place, shape, model, made, batch, ahead=1, note=note)
        yield from prompts(place, shape, made, lengths=(PROMPT,), note=note)


def cost(entry: Measurement, usual: Measurement) -> Measurement:
    """Of one mode against the other, by the rate that both have."""
    rate = next((rate for rate in RATES if rate in entry and rate in usual), None)
    if rate is None:
        return {"name": f"{entry['name']}: the cost", "note": "not known: one of the two was not measured"}
    note = f"{1 - entry[rate] / usual[rate]:.1%} less than by default"
    return {"name": f"{entry['name']}: the cost", "cost": 1 - entry[rate] / usual[rate], "note": note}

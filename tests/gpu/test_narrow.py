"""The product for few rows on tensor cores, and kernels that start before those before them have ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from gpustages.attention import patched
from gpustages.network import Sizes, new_runner, random_network
from gpustages.place import Place
from gpustages.recording import place_slots
from gpustages.shapes import Shape
from gpustages.warming import warm
from leokernels.product import choose_product
from leokernels.table import Place as Served
from leokernels.triton import narrow, tiles
from leoserve.model.device import DeviceRunner
from leoserve.model.graphs import PADDING, CudaRecorder, DecodeGraphs
from leoserve.model.llama import Llama
from tests.kernels.test_triton_narrow import LEOLM

GPU = torch.device("cuda", 0)
PLACE = Place(GPU, torch.bfloat16, tiny=False, scratch=Path(), ceilings={}, deadline=time.monotonic() + 3600)
HALF = (torch.bfloat16, torch.float16)
SHAPES = [*sorted({shape for shapes in LEOLM.values() for shape in shapes}), (1000, 1000), (9000, 200)]
SMALL = (
    Shape("heads of their own", 512, 1024, 4, 4, 4, vocab=1024, context=512),
    Shape("8 heads on a KV head", 1024, 2048, 4, 8, 1, vocab=1024, context=512),
)
BOUNDS = Sizes(slots=4, length=512, tokens=512, block_size=64, sequences=4)
STEPS = 200

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not tiles.early(tiles.capability(GPU), 1),
    reason="neither is taken on this GPU",
)


@pytest.fixture(scope="module")
def compiled() -> None:
    """Each product's kernels, by as many processes as there are cores for."""
    warm(PLACE, calls, seconds=60)


def calls(place: Place) -> Iterator[Callable[[], object]]:
    for dtype, (columns, depth), rows in product(HALF, SHAPES, narrow.KINDS_OF_ROWS):
        yield partial(multiply, place.device, dtype, columns, depth, rows)


def multiply(device: torch.device, dtype: torch.dtype, columns: int, depth: int, rows: int) -> torch.Tensor:
    x = torch.zeros(rows, depth, dtype=dtype, device=device)
    return narrow.narrow_linear(x, torch.zeros(columns, depth, dtype=dtype, device=device))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
def test_it_is_float64s_product_for_1_to_8_rows(columns: int, depth: int, dtype: torch.dtype) -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(narrow.MOST_ROWS, depth, generator=generator, device=GPU).to(dtype)
    weight = (torch.randn(columns, depth, generator=generator, device=GPU) * depth**-0.5).to(dtype)
    exact = x.double() @ weight.double().T
    for rows in range(1, narrow.MOST_ROWS + 1):
        found = narrow.narrow_linear(x[:rows], weight)
        torch.testing.assert_close(found.double(), exact[:rows], rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_a_server_takes_it_here() -> None:
    assert choose_product(Served(GPU, torch.bfloat16, 128)).name == "narrow"


def recorded(model: Llama, *, early: bool) -> tuple[DeviceRunner, DecodeGraphs]:
    """A runner whose slots have blocks of their own for every position."""
    runner = new_runner(PLACE, model, BOUNDS)
    place_slots(runner, BOUNDS.length)
    with patched("early", early):
        return runner, runner.record(CudaRecorder())


def drawn(draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and positions [2, size] of 1 to 4 rows, padded, and a last token for each slot."""
    rows = draw.randint(1, BOUNDS.slots)
    size = 1 << (rows - 1).bit_length()
    inputs = torch.full((2, size), PADDING, dtype=torch.int32)
    inputs[0, :rows] = torch.tensor(draw.sample(range(BOUNDS.slots), rows))
    inputs[1, :rows] = torch.tensor([draw.randrange(BOUNDS.length) for _ in range(rows)])
    return inputs.to(GPU), torch.tensor([draw.randrange(3, 1000) for _ in range(BOUNDS.slots)], device=GPU)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_steps_whose_kernels_start_early_have_the_bits_of_those_whose_kernels_do_not(shape: Shape) -> None:
    """Replayed, and launched kernel by kernel. One that read too soon, or wrote too soon, would have others."""
    model = random_network(PLACE, shape)
    (late, late_graphs), (early, early_graphs) = (recorded(model, early=early) for early in (False, True))
    pairs = [
        pair
        for caches in zip(late.key_value, early.key_value, strict=True)
        for pair in zip(*(cache.tensors() for cache in caches), strict=True)
    ]
    for theirs, ours in pairs:
        ours.copy_(theirs)
    draw = random.Random(0)
    for step in range(STEPS):
        inputs, tokens = drawn(draw)
        for runner in (late, early):
            runner.state.last_token[: BOUNDS.slots] = tokens
        expected = late_graphs.replay(inputs, inputs.shape[1]).clone()
        assert expected[: int((inputs[0] >= 0).sum())].isfinite().all()
        assert torch.equal(early_graphs.replay(inputs, inputs.shape[1]), expected), f"step {step}, replayed"
        assert torch.equal(early._decode(*inputs), expected), f"step {step}, launched"
    for theirs, ours in pairs:
        assert torch.equal(ours, theirs)

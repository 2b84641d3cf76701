"""Draws from the most likely ids: against float64 and PyTorch's truncation, beside any others, in every variant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from leokernels import native
from leokernels.native import Limits
from leoserve.model.truncation import Truncation

from .variants import VARIANTS, forget, use_variant

# Of the mass: weights are float32, off by a unit or two in the last place, and so are the sums of a row's.
ROUNDING = 2e-6
ANY = 10**9  # of top_k
Case = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p
Floats = NDArray[np.float32]
every_variant = pytest.mark.usefixtures("library")

CASES = st.tuples(
    st.one_of(st.just(1.0), st.sampled_from([0.01, 0.3, 0.8, 2.0, 100.0])),
    st.one_of(st.just(ANY), st.sampled_from([1, 2, 20, 31, 32, 33, 257, 400]), st.integers(1, 6000)),
    st.one_of(st.just(1.0), st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.95, 0.9999]), st.floats(1e-6, 0.9999)),
    st.one_of(st.just(0.0), st.sampled_from([1e-30, 0.05, 0.5, 1.0]), st.floats(0, 1.0)),
)
UNIFORM = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]), st.floats(0, 1, exclude_max=True))


@st.composite
def rows_of_logits(draw_from: st.DrawFn, longest: int = 5000) -> Tensor:
    """A few rows of lengths around groups and pieces; flat and peaked, many with equal values, some banned."""
    lengths = [1, 2, 31, 32, 33, 100, 255, 257, 700, 2560, 5000]
    columns = draw_from(st.sampled_from([length for length in lengths if length <= longest]))
    draws = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    rows = []
    for _ in range(draw_from(st.integers(1, 4))):
        logits = draws.normal(size=columns) * draw_from(st.sampled_from([0.0, 1e-30, 0.01, 1.0, 5.0, 40.0]))
        step = draw_from(st.sampled_from([0.0, 0.0, 0.25, 2.0]))
        if step:
            logits = np.round(logits / step) * step  # 0.0 and -0.0 among them, which are equal
        logits += draw_from(st.sampled_from([0.0, 0.0, -1000.0, 3e4]))
        banned = draw_from(st.sampled_from([0.0, 0.0, 0.5, 0.95]))
        logits[(draws.random(columns) < banned) & (np.arange(columns) != columns // 2)] = -np.inf
        rows.append(logits)
    return torch.tensor(np.array(rows), dtype=torch.float32)


def chosen(logits: Tensor, cases: Sequence[Case], uniforms: Sequence[float] | NDArray[np.float64]) -> list[int]:
    temperatures, *limits = (np.array(each) for each in zip(*cases, strict=True))
    ids: list[int] = native.choose(logits, temperatures, np.array(uniforms), limits=Limits(*limits))[1].tolist()
    return ids


def in_order(row: Floats, case: Case) -> tuple[NDArray[np.int64], NDArray[np.float64], set[int]]:
    """Ids of a row by logit, the largest first and the lower id first, their weights, and how many may be kept.

    More than one number is possible only where a logit is at the border of min_p to within float64's rounding, and
    where top_p's share is reached to within ROUNDING.
    """
    temperature, top_k, top_p, min_p = case
    order = np.argsort(-row, kind="stable")
    order = order[np.isfinite(row[order])]
    distances = row[order].astype(np.float64) - float(row[order[0]])
    weights = np.exp(distances / float(np.float32(temperature)))
    ends = {len(order)}
    if min_p > 0:
        border = float(np.float32(temperature)) * math.log(min_p)
        slack = 1e-13 * max(-border, abs(float(row[order[0]]))) if border else 0.0
        ends = {int((distances >= border + each).sum()) for each in (-slack, slack)}
    numbers: set[int] = set()
    for end in {min(max(end, 1), top_k) for end in ends}:
        cumulative = weights[:end].cumsum() / weights[:end].sum()
        share = (top_p - ROUNDING, top_p + ROUNDING) if top_p < 1 else (2.0, 2.0)
        first, last = (min(int(np.searchsorted(cumulative, each)), end - 1) for each in share)
        numbers |= set(range(first + 1, last + 2))
    return order, weights, numbers


def possible_draws(row: Floats, case: Case, uniform: float) -> set[int]:
    """The ids that what is within ROUNDING of `uniform` leads to, for each number of ids that may be kept."""
    order, weights, numbers = in_order(row, case)
    found: set[int] = set()
    for kept in numbers:
        rising = np.argsort(order[:kept])
        cumulative = weights[rising].cumsum() / weights[:kept].sum()
        first, last = (int((cumulative <= uniform + slack).sum()) for slack in (-ROUNDING, ROUNDING))
        found |= set(order[rising][first : last + 1].tolist())
    return found


@every_variant
@settings(max_examples=200, deadline=None)
@given(rows_of_logits(), st.data())
def test_a_draw_is_what_sorting_in_float64_would_give(logits: Tensor, data: st.DataObject) -> None:
    cases = data.draw(st.lists(CASES, min_size=len(logits), max_size=len(logits)))
    uniforms = data.draw(st.lists(UNIFORM, min_size=len(logits), max_size=len(logits)))
    found = chosen(logits, cases, uniforms)
    for row, case, uniform, id in zip(logits.numpy(), cases, uniforms, found, strict=True):
        assert id in possible_draws(row, case, uniform)


GRID = 2048


def kept_of(row: Tensor, case: Case) -> set[int]:
    """Of the ids that have more than 1 / GRID of what is kept all, of the others some."""
    uniforms = (np.arange(GRID) + 0.5) / GRID
    return set(chosen(row.repeat(GRID, 1), [case] * GRID, uniforms))


@every_variant
@settings(max_examples=60, deadline=None)
@given(rows_of_logits(longest=257), CASES)
def test_what_is_kept_is_what_pytorch_keeps(logits: Tensor, case: Case) -> None:
    """But for a share that is just reached, and for ids whose weights are the edge's to within PyTorch's rounding.

    It divides by the temperature in float32: the error of a weight is that of the quotient.
    """
    temperature, top_k = case[:2]
    row, columns = logits[0], logits.shape[1]
    limits = [torch.tensor([min(top_k, columns)]), *(torch.tensor([each], dtype=torch.float64) for each in case[2:])]
    probabilities = torch.softmax(row[None] / np.float32(temperature), 1)
    theirs = Truncation(*limits, columns).apply(probabilities)[0]
    order, weights, numbers = in_order(row.numpy(), case)
    edges = weights[sorted(numbers)[0] - 1], weights[sorted(numbers)[-1] - 1]
    clear = 1e-6 + 2**-22 * float(row[row.isfinite()].abs().max()) / temperature
    found = kept_of(row, case)
    for id, weight in zip(order.tolist(), weights, strict=True):
        if weight > edges[0] * (1 + clear) and theirs[id] / theirs.sum() > 2 / GRID:
            assert id in found
        if weight > edges[0] * (1 + clear) and id in found:
            assert theirs[id] > 0
        if weight < edges[1] * (1 - clear):
            assert id not in found
            assert theirs[id] == 0


CORNERS: dict[str, tuple[list[float], Case, set[int]]] = {
    "k of one among equals": ([1, 3, 3, 3], (1, 1, 1, 0), {1}),
    "k among equals": ([1, 3, 3, 3], (1, 2, 1, 0), {1, 2}),
    "k ends where a value does": ([*[1] * 40, *[2] * 40], (1, 40, 1, 0), set(range(40, 80))),
    "p among equals beside what has no weight": (
        [*[-200] * 40, *[2] * 64, *[1.5] * 40],
        (0.001, 128, 0.5, 0),
        set(range(40, 72)),
    ),
    "k beyond what is allowed": ([1, -math.inf, 2, -math.inf], (1, 3, 1, 0), {0, 2}),
    "p tiny": ([1, 3, 3, 2], (1, ANY, 1e-300, 0), {1}),
    "p tiny of what k left": ([1, 3, 3, 2], (1, 3, 1e-300, 0), {1}),
    "p just beyond the first": ([-9, 0, 0, -9], (0.01, ANY, 0.502, 0), {1, 2}),
    "p just below one": ([0] * 40, (1, ANY, 1 - 1e-12, 0), set(range(40))),
    "p exactly reached": ([0] * 100, (1, ANY, 0.5, 0), set(range(50))),
    "p exactly reached by equals among others": ([5, *[9] * 100, 5], (0.1, ANY, 0.25, 0), set(range(1, 26))),
    "p of what k left": ([2, 1, 1, 1], (1, 3, 0.9, 0), {0, 1, 2}),
    "p cuts the equals that k cut": ([0] * 4, (1, 3, 0.6, 0), {0, 1}),
    "min_p of one": ([1, 3, 3, 2], (1, ANY, 1, 1), {1, 2}),
    "min_p between": ([0, math.log(0.5), math.log(0.2), -9], (1, ANY, 1, 0.25), {0, 1}),
    "min_p follows the temperature": ([0, math.log(0.5), math.log(0.2), -9], (4, ANY, 1, 0.5), {0, 1, 2}),
    "all three": ([2, 1.9, 1.9, -4], (1, 2, 0.7, 0.1), {0, 1}),
    "one-hot": ([-math.inf, 5, -math.inf, -math.inf], (1, 2, 0.9, 0.1), {1}),
    "weights that vanish": ([0, -103, -103.2, -200], (1, 3, 0.9999999, 0), {0}),
    "among them one of the largest": ([-200, -200, 0, -200], (1, 3, 1, 0), {2}),
    "zeros of either sign": ([-1, -0.0, 0.0, -0.0], (1, 2, 1, 0), {1, 2}),
    "a temperature that is tiny": ([1, 1.001, 1.001, 0.9], (1e-5, ANY, 0.9, 0), {1, 2}),
    "one that is large": ([-3e4, 3e4, 0, 0], (1e30, ANY, 0.75, 0), {1, 2, 3}),
    "logits beyond each other's range": ([3e38, -3e38, 3e38, 1], (1, 2, 0.9, 0), {0, 2}),
    "all equal, beyond a piece": ([7] * 600, (1, 300, 0.5, 0.5), set(range(150))),
}


@every_variant
@pytest.mark.parametrize("name", CORNERS)
def test_what_is_kept_in_corner_cases(name: str) -> None:
    row, case, expected = CORNERS[name]
    assert kept_of(torch.tensor(row, dtype=torch.float32), case) == expected


def mixture(rows: int, columns: int) -> tuple[Tensor, list[Case], NDArray[np.float64]]:
    draws = np.random.default_rng(columns)
    scales = torch.from_numpy(draws.choice([0.0, 0.5, 2, 6], (rows, 1)).astype(np.float32))
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * scales
    logits[::3] = (logits[::3] * 4).round() / 4
    cases = [
        (float(draws.choice([0.7, 1, 1.5])), int(draws.choice([ANY, 5, 40, 300])), float(top_p), float(min_p))
        for top_p, min_p in zip(draws.choice([1, 0.5, 0.9, 0.99], rows), draws.choice([0, 0, 0.02], rows), strict=True)
    ]
    return logits, cases, draws.random(rows)


@every_variant
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", [33, 2560, 32128])
def test_a_draw_is_the_same_alone_and_among_others(columns: int) -> None:
    logits, cases, uniforms = mixture(48, columns)
    found = chosen(logits, cases, uniforms)
    assert chosen(logits.flip(0).contiguous(), cases[::-1], uniforms[::-1]) == found[::-1]
    for row in range(0, 48, 5):
        assert chosen(logits[row : row + 1], cases[row : row + 1], uniforms[row : row + 1]) == found[row : row + 1]


@pytest.mark.parametrize("columns", [33, 2560, 5000])
def test_every_variant_with_one_rounding_draws_the_same(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, cases, uniforms = mixture(200, columns)
    cases[::4] = [(temperature, ANY, 1.0, 0.0) for temperature, *_ in cases[::4]]  # of all ids
    found = [chosen(logits, cases, uniforms) for name in VARIANTS if use_variant(name, monkeypatch) is None]
    forget()
    if not found:
        pytest.skip("this processor runs none of the variants")
    assert found.count(found[0]) == len(found)


@every_variant
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", [17, 2560, 5000])
def test_a_draw_under_a_mask_is_that_of_masked_logits(columns: int) -> None:
    logits, cases, uniforms = mixture(40, columns)
    words = np.random.default_rng(1).integers(-(2**31), 2**31, (5, -(-columns // 32)), dtype=np.int32)
    words[1], words[2, 1:] = -1, 0
    slots = np.array([-1, 0, 1, 2, 3, 4, -1, 3] * 5)
    masked, rows = logits.clone(), np.flatnonzero(slots >= 0)
    native.mask(masked, rows, slots[rows], words)
    temperatures, *limits = (np.array(each) for each in zip(*cases, strict=True))
    found = native.choose(logits, temperatures, uniforms, native.RowMasks(slots, words), Limits(*limits))
    expected = native.choose(masked, temperatures, uniforms, limits=Limits(*limits))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@every_variant
@pytest.mark.parametrize("case", [(1, ANY, 0.9, 0), (1, 3, 1, 0), (1, ANY, 1, 0.5), (1, 90, 0.5, 0.01)])
def test_a_row_that_is_not_finite_is_told_by_its_peak_and_disturbs_no_other(case: Case) -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    logits[1, 70], logits[2], logits[3, 9] = math.nan, -math.inf, math.inf
    temperatures, *limits = (np.array(each) for each in zip(*[case] * 5, strict=True))
    peaks, found = native.choose(logits, temperatures, np.full(5, 0.5), limits=Limits(*limits))
    np.testing.assert_array_equal(peaks[1:4], [np.nan, -np.inf, np.inf])
    assert found[[0, 4]].tolist() == chosen(logits[[0, 4]], [case] * 2, [0.5] * 2)
    assert ((found >= 0) & (found < 100)).all()


@every_variant
def test_limits_that_do_not_fit_are_refused() -> None:
    logits, ones = torch.zeros(2, 64), np.ones(2)
    for limits in (Limits(np.ones(1, dtype=np.int64), ones, ones), Limits(np.array([4, 0]), ones, ones)):
        with pytest.raises(ValueError, match="2 rows"):
            native.choose(logits, ones, ones / 2, limits=limits)

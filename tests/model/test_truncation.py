"""Selection without sorting: held against a sampler that sorts, on inputs chosen to have ties and cliffs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from leoserve.model.truncation import Truncation, argmax, draw, top


def ordered(row: np.ndarray) -> np.ndarray:
    """Ids by value, the largest first, among equals the lower id first."""
    return np.argsort(-row, kind="stable")


def reference_kept(row: Tensor, top_k: int, top_p: float, min_p: float) -> list[int]:
    """What min_p, top_k and top_p leave of one row of probabilities, by sorting it. In rising order of ids."""
    values = row.numpy().astype(np.float64)
    order = ordered(values)
    if min_p > 0:
        order = order[values[order] >= min_p * values[order[0]]]
    order = order[:top_k]
    if top_p < 1:
        cut = min_p > 0 or top_k < len(values)
        cumulative = values[order].cumsum()
        enough = np.flatnonzero(cumulative >= top_p * (cumulative[-1] if cut else 1.0))
        if len(enough):
            order = order[: enough[0] + 1]
    return sorted(order[values[order] > 0].tolist())


def reference_draws(row: Tensor, kept: list[int], uniform: float) -> set[int]:
    """The id that `uniform` leads to; more than one where it meets a border to within the rounding of the sums."""
    cumulative = row.numpy().astype(np.float64)[kept].cumsum() / row.numpy().astype(np.float64)[kept].sum()
    last = len(kept) - 1
    places = [int((cumulative <= uniform + slack).sum()) for slack in (-1e-14, 1e-14)]
    return {kept[place] for place in range(min(places[0], last), min(places[-1], last) + 1)}


def truncation(rows: list[tuple[int, float, float]], vocab: int) -> Truncation:
    top_k = torch.tensor([min(k, vocab) for k, _, _ in rows])
    top_p = torch.tensor([p for _, p, _ in rows], dtype=torch.float64)
    min_p = torch.tensor([p for _, _, p in rows], dtype=torch.float64)
    return Truncation(top_k, top_p, min_p, vocab)


@st.composite
def probability_rows(draw_from: st.DrawFn) -> Tensor:
    """A few rows over vocabularies around the block width and the number of candidates, many with equal values."""
    vocab = draw_from(st.sampled_from([1, 2, 63, 64, 65, 100, 130, 700, 5000]))
    count = draw_from(st.integers(1, 4))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    rows = []
    for _ in range(count):
        logits = rng.normal(size=vocab) * draw_from(st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]))
        step = draw_from(st.sampled_from([0.0, 0.25, 2.0]))
        if step:
            logits = np.round(logits / step) * step  # equal values in numbers
        banned = draw_from(st.sampled_from([0.0, 0.0, 0.5, 0.95]))
        logits[(rng.random(vocab) < banned) & (np.arange(vocab) != vocab // 2)] = -np.inf
        rows.append(logits)
    return torch.softmax(torch.tensor(np.array(rows), dtype=torch.float32), 1)


PARAMETERS = st.tuples(
    st.one_of(st.just(10**9), st.sampled_from([1, 2, 20, 63, 64, 65, 400]), st.integers(1, 6000)),
    st.one_of(st.just(1.0), st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.95, 0.9999]), st.floats(1e-6, 0.9999)),
    st.one_of(st.just(0.0), st.sampled_from([0.05, 0.5, 1.0]), st.floats(0, 1.0)),
)
UNIFORM = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]), st.floats(0, 1, exclude_max=True))


@settings(max_examples=300, deadline=None)
@given(probability_rows(), st.data())
def test_truncation_keeps_and_draws_what_sorting_would(rows: Tensor, data: st.DataObject) -> None:
    count, vocab = rows.shape
    parameters = data.draw(st.lists(PARAMETERS, min_size=count, max_size=count))
    uniforms = data.draw(st.lists(UNIFORM, min_size=count, max_size=count))
    cut = truncation(parameters, vocab)
    kept = cut.apply(rows)
    drawn = cut.sample(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for number, (top_k, top_p, min_p) in enumerate(parameters):
        expected = reference_kept(rows[number], top_k, top_p, min_p)
        assert kept[number].nonzero().squeeze(1).tolist() == expected
        assert torch.equal(kept[number, expected], rows[number, expected])
        assert drawn[number] in reference_draws(rows[number], expected, uniforms[number])


@settings(max_examples=200, deadline=None)
@given(probability_rows(), st.data())
def test_candidates_that_cover_a_row_are_what_sorting_would_keep(rows: Tensor, data: st.DataObject) -> None:
    count, vocab = rows.shape
    parameters = data.draw(st.lists(PARAMETERS, min_size=count, max_size=count))
    ids, weights, covered = truncation(parameters, vocab)._candidates(rows)
    for number, (top_k, top_p, min_p) in enumerate(parameters):
        if covered[number]:
            kept = sorted(ids[number][weights[number] > 0].tolist())
            assert kept == reference_kept(rows[number], top_k, top_p, min_p)


@settings(max_examples=200, deadline=None)
@given(probability_rows(), st.data())
def test_a_draw_is_the_first_id_beyond_its_share_of_the_mass(rows: Tensor, data: st.DataObject) -> None:
    uniforms = data.draw(st.lists(UNIFORM, min_size=len(rows), max_size=len(rows)))
    drawn = draw(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for row, uniform, token in zip(rows, uniforms, drawn, strict=True):
        assert token in reference_draws(row, row.nonzero().squeeze(1).tolist(), uniform)


@pytest.mark.parametrize("vocab", [1, 64, 65, 200])
def test_a_draw_never_gives_an_id_without_weight(vocab: int) -> None:
    for only in {0, vocab // 2, vocab - 1}:
        weights = torch.zeros(3, vocab)
        weights[:, only] = 1e-30
        uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
        assert draw(weights, uniforms).tolist() == [only] * 3


@settings(max_examples=200, deadline=None)
@given(probability_rows(), st.integers(1, 80))
def test_top_is_the_start_of_the_sorted_row(rows: Tensor, count: int) -> None:
    count = min(count, rows.shape[1])
    scores = torch.log(rows)  # with minus infinity where the probability is 0
    values, ids = top(scores, count)
    for row, some_values, some_ids in zip(scores, values, ids, strict=True):
        expected = ordered(row.numpy())[:count]
        assert some_ids.tolist() == expected.tolist()
        assert torch.equal(some_values, row[some_ids])


def test_zeros_of_either_sign_are_equal() -> None:
    assert top(torch.tensor([[-0.0, 0.0, -0.0, -1.0]]), 3)[1].tolist() == [[0, 1, 2]]


def test_the_largest_value_is_found_at_its_lowest_id() -> None:
    values = torch.zeros(3, 200)
    values[0, [70, 90, 150]] = 2.0
    values[1] = -torch.inf
    values[2, 130] = torch.nan
    peak, ids = argmax(values)
    assert ids[:2].tolist() == [70, 0]
    assert peak[:2].tolist() == [2.0, -torch.inf]
    assert peak[2].isnan()


def test_top_k_keeps_exactly_k_of_equal_values_the_lowest_ids_first() -> None:
    rows = torch.full((2, 300), 1 / 300)
    kept = truncation([(3, 1.0, 0.0), (100, 1.0, 0.0)], 300).apply(rows)
    assert kept[0].nonzero().squeeze(1).tolist() == [0, 1, 2]
    assert kept[1].nonzero().squeeze(1).tolist() == list(range(100))


def test_top_p_is_a_share_of_what_min_p_and_top_k_left() -> None:
    row = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    # Of 0.7 that top_k leaves, 0.4 is more than half: in the whole distribution it is not.
    assert truncation([(2, 0.5, 0.0)], 4).apply(row).nonzero()[:, 1].tolist() == [0]
    assert truncation([(9, 0.5, 0.0)], 4).apply(row).nonzero()[:, 1].tolist() == [0, 1]
    assert truncation([(9, 0.5, 0.7)], 4).apply(row).nonzero()[:, 1].tolist() == [0]


def logits_and_probabilities(rows: int = 6, vocab: int = 3000) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(4)) * 2
    return logits, torch.softmax(logits, 1)


def kept_by(processor: LogitsProcessor, logits: Tensor) -> Tensor:
    return torch.isfinite(processor(torch.zeros(len(logits), 1, dtype=torch.long), logits))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    logits, probabilities = logits_and_probabilities()
    ours = truncation([(10**9, top_p, 0.0)] * 6, 3000).apply(probabilities) > 0
    assert torch.equal(ours, kept_by(TopPLogitsWarper(top_p), logits))


@pytest.mark.parametrize("top_k", [1, 50, 64, 65, 2999, 3000, 5000])
def test_top_k_is_that_of_transformers(top_k: int) -> None:
    logits, probabilities = logits_and_probabilities()
    ours = truncation([(top_k, 1.0, 0.0)] * 6, 3000).apply(probabilities) > 0
    assert torch.equal(ours, kept_by(TopKLogitsWarper(top_k), logits))


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(min_p: float) -> None:
    logits, probabilities = logits_and_probabilities()
    ours = truncation([(10**9, 1.0, min_p)] * 6, 3000).apply(probabilities) > 0
    assert torch.equal(ours, kept_by(MinPLogitsWarper(min_p), logits))


def test_top_k_then_top_p_is_that_of_transformers() -> None:
    logits, probabilities = logits_and_probabilities()
    both = LogitsProcessorList([TopKLogitsWarper(40), TopPLogitsWarper(0.8)])
    ours = truncation([(40, 0.8, 0.0)] * 6, 3000).apply(probabilities) > 0
    assert torch.equal(ours, kept_by(both, logits))

"""Log-probabilities: log-softmax of what the model said, with an order in which rank and list agree."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.model.logprobs import RawRows
from leoserve.model.sampler import Sampler
from leoserve.model.step import SamplingParams


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 64, 300]), st.sampled_from([0.0, 0.5, 2.0]), st.data())
def test_logprobs_are_the_log_softmax_and_ranks_the_place_in_it(
    seed: int, vocab: int, step: float, data: st.DataObject
) -> None:
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    if step:
        logits = (logits / step).round() * step  # equal values in numbers
    tokens = data.draw(st.lists(st.integers(0, vocab - 1), min_size=3, max_size=3))
    counts = data.draw(st.lists(st.integers(0, min(vocab, 20)), min_size=3, max_size=3))
    entries = RawRows(logits).of(torch.tensor(tokens), counts)
    expected = torch.log_softmax(logits.double(), 1)
    for row, (entry, token, count) in enumerate(zip(entries, tokens, counts, strict=True)):
        order = sorted(range(vocab), key=lambda other: (-float(logits[row, other]), other))
        assert entry.top_ids == order[:count]
        assert entry.rank == order.index(token) + 1
        assert entry.logprob == pytest.approx(float(expected[row, token]), abs=2e-5)
        assert entry.top_logprobs == pytest.approx(expected[row, order[:count]].tolist(), abs=2e-5)


def test_logprobs_are_of_the_models_distribution_whatever_the_parameters() -> None:
    logits = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    expected = torch.log_softmax(logits.double(), 1)
    rows = [
        SamplingParams(max_tokens=4, logprobs=3, temperature=0.3, top_k=5),
        SamplingParams(max_tokens=4, logprobs=3, logit_bias={17: 100.0}),
        SamplingParams(max_tokens=4, logprobs=3, temperature=0.0, repetition_penalty=5.0),
        SamplingParams(max_tokens=4, logprobs=3, allowed_token_ids=(9,)),
    ]
    sampler = Sampler(max_slots=4, vocab_size=200, token_ranges=[], device="cpu")
    for slot, each in enumerate(rows):
        sampler.set_slot(slot, each, 0, list(range(200)), [])
    result = sampler.sample(logits.clone(), [0, 1, 2, 3], [200] * 4)
    assert result.token_ids[1] == 17
    assert result.token_ids[3] == 9
    for row, (token, entry) in enumerate(zip(result.token_ids, result.logprobs, strict=True)):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        assert entry.top_ids == expected[row].topk(3).indices.tolist()


def test_a_row_that_is_not_finite_is_told_apart_and_spoils_no_other() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    expected = RawRows(logits).of(torch.tensor([1, 2, 3]), [2, 2, 2])
    spoiled = logits.clone()
    spoiled[1, 40] = torch.nan
    result = RawRows(spoiled).of(torch.tensor([1, 2, 3]), [2, 2, 2])
    assert [result[0], result[2]] == [expected[0], expected[2]]
    assert math.isnan(result[1].logprob)
    assert (result[1].rank, result[1].top_ids) == (0, [])


def test_given_tokens_are_scored_with_as_many_alternatives_as_were_asked_for() -> None:
    logits = torch.randn(5, 80, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(max_slots=2, vocab_size=80, token_ranges=[(0, 70)], device="cpu")
    sampler.set_slot(1, SamplingParams(max_tokens=1, prompt_logprobs=2), 0, [], [])
    entries = sampler.score(logits.clone(), 1, [3, 1, 4, 1, 5])
    expected = torch.log_softmax(logits[:, :70].double(), 1)
    for row, (token, entry) in enumerate(zip([3, 1, 4, 1, 5], entries, strict=True)):
        assert entry.logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        assert entry.top_ids == expected[row].topk(2).indices.tolist()

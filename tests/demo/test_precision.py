"""What 8-bit caches cost the bundled model is measured, and it is little."""

from __future__ import annotations

import math

import pytest
import torch

from leoserve.demo import model_path
from leoserve.demo.precision import Sample, compare, measure, samples, table


def test_eight_bits_cost_the_bundled_model_little() -> None:
    plain, int8, fp8 = measure(model_path(), torch.bfloat16, 12)
    assert (plain.relative_error, plain.same_best) == (0, 1)
    assert 0 < int8.relative_error < 0.03
    assert int8.relative_error < fp8.relative_error < 0.08
    for loss in (int8, fp8):
        assert abs(math.log(loss.perplexity / plain.perplexity)) < 0.02
        assert loss.same_best > 0.95


def test_only_the_answers_are_measured() -> None:
    found = samples(model_path(), 5)
    assert len(found) == 5
    for sample in found:
        assert 0 < sample.answer < len(sample.tokens) - 1


def test_the_figures_are_what_they_are_called() -> None:
    chats = [Sample([0, 1, 0, 1], 2)]
    plain = [torch.tensor([[1.0, 0.0], [0.0, 2.0]])]
    found = [torch.tensor([[1.0, 0.0], [3.0, 2.0]])]
    loss = compare("odd", plain, found, chats)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert loss.perplexity == pytest.approx(math.exp(expected))
    assert loss.relative_error == pytest.approx(3 / math.sqrt(5))
    assert (loss.largest_error, loss.same_best) == (3, 0.5)
    share = 1 / (1 + math.exp(2))
    other = 1 / (1 + math.exp(-1))
    divergence = share * math.log(share / other) + (1 - share) * math.log((1 - share) / (1 - other))
    assert loss.divergence == pytest.approx(divergence / 2, rel=1e-5)
    assert "| odd |" in table([loss])

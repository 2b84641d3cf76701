"""The sampler: what each parameter does, that rows never touch each other, and that the distribution is followed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leoserve.model.sampler import NOT_FINITE, NOTHING_LEFT, Sampled, Sampler
from leoserve.model.step import SamplingParams

VOCAB = 1000


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=16, **changes)


def sampler(*rows: SamplingParams, vocab: int = VOCAB, ranges: list[tuple[int, int]] | None = None) -> Sampler:
    """A sampler whose slots have these parameters and an empty history."""
    result = Sampler(max_slots=len(rows), vocab_size=vocab, token_ranges=ranges or [(0, vocab)], device="cpu")
    for slot, each in enumerate(rows):
        result.set_slot(slot, each, 0, [], [])
    return result


def noise_logits(rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sample_all(chosen: Sampler, logits: Tensor, position: int = 0) -> Sampled:
    return chosen.sample(logits.clone(), list(range(len(logits))), [position] * len(logits))


def chosen_at(each: SamplingParams, row: Tensor, count: int) -> list[int]:
    """The tokens of `count` positions for the same logits."""
    rows = sampler(*[each] * count, vocab=len(row))
    return rows.sample(row.repeat(count, 1), list(range(count)), list(range(count))).token_ids


@pytest.mark.parametrize("greedy", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}])
def test_greedy_takes_the_most_likely_and_among_equals_the_lowest_id(greedy: dict[str, float]) -> None:
    logits = noise_logits(8)
    logits[3, [400, 17, 900]] = 50.0
    result = sample_all(sampler(*[params(**greedy)] * 8), logits)
    assert result.token_ids == [int(np.argmax(row)) for row in logits.numpy()]
    assert result.token_ids[3] == 17
    assert result.logprobs == [None] * 8
    assert result.failed == [None] * 8


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 200}],
)
def test_tokens_follow_the_distribution(changes: dict[str, float]) -> None:
    row = noise_logits(1, 24, scale=1.5)[0]
    logits = row / changes.get("temperature", 1.0)
    expected = torch.softmax(logits, 0).double()
    order = expected.argsort(descending=True)
    if "top_k" in changes:
        expected[order[int(changes["top_k"]) :]] = 0
    if "min_p" in changes:
        expected[expected < changes["min_p"] * expected.max()] = 0
    if "top_p" in changes:
        expected[order[1:][expected[order].cumsum(0)[:-1] >= changes["top_p"]]] = 0
    expected /= expected.sum()
    count = 20_000
    observed = np.bincount(chosen_at(params(seed=11, **changes), row, count), minlength=24)
    possible = expected.numpy() > 0
    assert observed[~possible].sum() == 0
    wanted = expected.numpy()[possible] * count
    chi_square = ((observed[possible] - wanted) ** 2 / wanted).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def mixture(count: int) -> list[SamplingParams]:
    """Rows of every kind in turn."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.7, "top_p": 0.95},
        {},
        {"temperature": 0.0, "logprobs": 3},
        {"temperature": 0.7},
        {"top_k": 40, "top_p": 0.9, "logprobs": 20},
        {"temperature": 1.7, "top_p": 0.98},  # more than the candidates hold
        {"top_k": 300},
        {"min_p": 0.01, "presence_penalty": 1.0, "logprobs": 1},
        {"repetition_penalty": 1.3, "logit_bias": {5: 4.0, 6: -100.0}},
        {"allowed_token_ids": tuple(range(100, 200))},
        {"bad_words": ((3,), (7, 8)), "min_tokens": 4, "stop_token_ids": (1, 2), "logprobs": 0},
    ]
    return [params(seed=slot, **kinds[slot % len(kinds)]) for slot in range(count)]


@pytest.mark.parametrize("vocab", [VOCAB, 1024, 33_000])
def test_a_row_has_the_same_bits_alone_and_beside_any_others(vocab: int) -> None:
    total = 64
    rows, logits = mixture(total), noise_logits(total, vocab, seed=3)
    alone = []
    for slot, each in enumerate(rows):
        single = sampler(each, vocab=vocab)
        single.set_slot(0, each, 0, [1, 2, 3], [7, 7])
        alone.append(single.sample(logits[slot : slot + 1].clone(), [0], [slot * 3]))
    for size in (2, 3, 7, 16, 33, 64):
        together = sampler(*rows, vocab=vocab)
        for slot, each in enumerate(rows):
            together.set_slot(slot, each, 0, [1, 2, 3], [7, 7])
        for begin in range(0, total, size):
            slots = list(range(begin, min(begin + size, total)))[::-1]
            result = together.sample(logits[slots], slots, [slot * 3 for slot in slots])
            for place, slot in enumerate(slots):
                assert result.token_ids[place] == alone[slot].token_ids[0]
                assert result.logprobs[place] == alone[slot].logprobs[0]


def test_the_same_seed_gives_the_same_tokens_and_another_seed_choice_or_position_others() -> None:
    row = noise_logits(1, scale=0.5)[0]
    first = chosen_at(params(seed=5), row, 40)
    assert chosen_at(params(seed=5), row, 40) == first
    assert chosen_at(params(seed=6), row, 40) != first
    other_choice = sampler(*[params(seed=5)] * 40)
    for slot in range(40):
        other_choice.set_slot(slot, params(seed=5), 1, [], [])
    assert other_choice.sample(row.repeat(40, 1), list(range(40)), list(range(40))).token_ids != first
    assert len(set(first)) > 20


def test_a_preempted_sequence_goes_on_as_if_it_had_not_been() -> None:
    rows = mixture(22)
    prompt = [4, 9, 9, 30]
    steps = [noise_logits(22, seed=step, scale=1.0) for step in range(12)]
    through = sampler(*rows)
    for slot, each in enumerate(rows):
        through.set_slot(slot, each, 0, prompt, [])
    outputs: list[list[int]] = [[] for _ in rows]
    for step, logits in enumerate(steps):
        if step == 6:
            resumed = sampler(*rows)
            for slot, each in enumerate(rows):
                resumed.set_slot(slot, each, 0, prompt, outputs[slot])
        expected = through.sample(logits.clone(), list(range(22)), [4 + step] * 22)
        if step >= 6:
            assert resumed.sample(logits.clone(), list(range(22)), [4 + step] * 22) == expected
        for slot, token in enumerate(expected.token_ids):
            outputs[slot].append(token)


def test_a_slot_forgets_its_former_sequence() -> None:
    used = sampler(params(temperature=0.0, logit_bias={9: 100.0}, logprobs=2, presence_penalty=1.0))
    logits = noise_logits(1)
    assert sample_all(used, logits).token_ids == [9]
    used.set_slot(0, params(temperature=0.0), 0, [], [])
    assert sample_all(used, logits) == sample_all(sampler(params(temperature=0.0)), logits)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {}, {"temperature": 2.0, "top_p": 0.9}, {"top_k": 999}])
def test_ids_without_a_token_are_neither_sampled_nor_listed(changes: dict[str, Any]) -> None:
    ranges = [(0, 30), (40, 990)]
    rows = sampler(*[params(seed=seed, logprobs=20, **changes) for seed in range(64)], ranges=ranges)
    logits = noise_logits(64)
    logits[:, 30:40] = 60.0
    logits[:, 990:] = torch.nan
    result = sample_all(rows, logits)
    assert result.failed == [None] * 64
    with_token = {token for start, stop in ranges for token in range(start, stop)}
    for token, entry in zip(result.token_ids, result.logprobs, strict=True):
        assert entry is not None
        assert {token, *entry.top_ids} <= with_token
        assert entry.top_logprobs[0] > -12


def test_the_logprobs_of_ids_with_a_token_add_up_to_one() -> None:
    rows = sampler(params(temperature=0.0, logprobs=VOCAB), ranges=[(0, 500)])
    entry = sample_all(rows, noise_logits(1)).logprobs[0]
    assert entry is not None
    assert sum(math.exp(value) for value in entry.top_logprobs) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_row_that_is_not_finite_fails_alone(value: float) -> None:
    rows = mixture(33)
    logits = noise_logits(33)
    expected = sample_all(sampler(*rows), logits)
    broken = [0, 2, 4, 5, 10, 20]
    spoiled = logits.clone()
    spoiled[broken] = value if value == -torch.inf else spoiled[broken].index_fill(1, torch.tensor([5, 150]), value)
    together = sampler(*rows)
    result = sample_all(together, spoiled)
    for slot in range(33):
        if slot in broken:
            assert result.failed[slot] == (NOTHING_LEFT if value == -torch.inf and slot == 20 else NOT_FINITE)
            assert 0 <= result.token_ids[slot] < VOCAB
            assert result.logprobs[slot] is None
        else:
            assert result.failed[slot] is None
            assert result.token_ids[slot] == expected.token_ids[slot]
            assert result.logprobs[slot] == expected.logprobs[slot]


def test_what_is_banned_anyway_may_be_no_number() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = torch.nan
    result = sample_all(sampler(params(allowed_token_ids=(8,))), logits)
    assert (result.token_ids, result.failed) == ([8], [None])


def test_a_failed_row_is_no_part_of_its_history() -> None:
    each = params(temperature=0.0, frequency_penalty=2.0)
    rows = sampler(each)
    assert rows.sample(torch.full((1, VOCAB), torch.nan), [0], [0]).failed == [NOT_FINITE]
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 1.0
    assert rows.sample(logits, [0], [1]).token_ids == [0]


def test_a_row_with_nothing_left_to_choose_fails_alone_and_says_why() -> None:
    nothing = params(allowed_token_ids=(3, 4), bad_words=((3,), (4,)))
    waiting = params(allowed_token_ids=(3,), stop_token_ids=(3,), min_tokens=1)
    result = sample_all(sampler(nothing, params(temperature=0.0), waiting), torch.zeros(3, VOCAB))
    assert result.failed == [NOTHING_LEFT, None, NOTHING_LEFT]
    assert result.token_ids[1] == 0


@pytest.mark.parametrize("changes", [{"temperature": 1e-5}, {"temperature": 1e-5, "top_p": 0.9}])
def test_a_tiny_temperature_takes_the_most_likely(changes: dict[str, Any]) -> None:
    logits = noise_logits(32, scale=30.0)
    rows = sampler(*[params(seed=seed, **changes) for seed in range(32)])
    assert sample_all(rows, logits).token_ids == logits.argmax(1).tolist()


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    row = noise_logits(1, 50, scale=1.0)[0]
    assert chosen_at(params(top_k=5000), row, 200) == chosen_at(params(), row, 200)


def test_a_bias_of_a_hundred_forces_or_bans() -> None:
    logits = noise_logits(2).clamp(-20, 20)
    best = int(logits[1].argmax())
    forced, banned = params(logit_bias={123: 100.0}), params(logit_bias={best: -100.0}, temperature=0.0)
    result = sample_all(sampler(forced, banned), logits)
    assert result.token_ids[0] == 123
    assert result.token_ids[1] == int(logits[1].argsort(descending=True)[1])


def test_no_rows_is_no_work() -> None:
    assert sampler(params()).sample(torch.zeros(0, VOCAB), [], []) == Sampled([], [], [])


def test_token_ranges_that_name_no_id_are_refused() -> None:
    with pytest.raises(ValueError, match="token_ranges"):
        Sampler(max_slots=1, vocab_size=10, token_ranges=[(10, 20)], device="cpu")

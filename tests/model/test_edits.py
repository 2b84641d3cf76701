"""Bans, biases and penalties: against numbers worked out by hand, and against transformers where it means the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from leoserve.model.edits import Edits, SeenTokens, apply_edits
from leoserve.model.step import SamplingParams

BANNED = -torch.inf


def edits(prompt: list[int], output: list[int], *, vocab: int = 8, **changes: Any) -> Edits:
    result = Edits.of(SamplingParams(max_tokens=16, **changes), prompt, output, vocab)
    assert result is not None
    return result


def edited(row: list[float], prompt: list[int], output: list[int], **changes: Any) -> list[float]:
    logits = torch.tensor([row])
    apply_edits(logits, [(0, edits(prompt, output, vocab=len(row), **changes))])
    return [round(value, 5) for value in logits[0].tolist()]


def test_openai_penalties_are_about_generated_tokens() -> None:
    row = [1.0, 1.0, 1.0, -1.0]
    # Token 1 came three times and token 3 once; token 0 is in the prompt only.
    assert edited(row, [0, 1], [1, 1, 3, 1], frequency_penalty=0.5) == [1.0, -0.5, 1.0, -1.5]
    assert edited(row, [0, 1], [1, 1, 3, 1], presence_penalty=0.4) == [1.0, 0.6, 1.0, -1.4]
    both = edited(row, [0, 1], [1, 1, 3, 1], presence_penalty=0.4, frequency_penalty=0.5)
    assert both == [1.0, -0.9, 1.0, -1.9]
    assert edited(row, [0], [1], presence_penalty=-1.0) == [1.0, 2.0, 1.0, -1.0]


def test_the_repetition_penalty_is_about_prompt_and_generated_tokens_once_each() -> None:
    assert edited([3.0, 3.0, 3.0, -2.0], [0, 0], [3, 3], repetition_penalty=1.5) == [2.0, 3.0, 3.0, -3.0]


def test_repetition_comes_before_the_other_penalties_and_after_the_bias() -> None:
    changes = {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {1: 3.0}}
    # (1 + 3) / 2 - 2 * 0.5 - 0.25
    assert edited([1.0, 1.0], [], [1, 1], **changes) == [1.0, 0.75]
    # A token of the prompt alone has the repetition penalty only.
    assert edited([1.0, 1.0], [0], [1, 1], **changes) == [0.5, 0.75]


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    vocab, generator = 500, torch.Generator().manual_seed(1)
    logits = torch.randn(6, vocab, generator=generator) * 4
    contexts = torch.randint(0, vocab, (6, 40), generator=generator)
    for penalty in (1.3, 0.8):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(contexts, logits.clone())
        rows = [
            (row, edits(context[:25], context[25:], vocab=vocab, repetition_penalty=penalty))
            for row, context in enumerate(contexts.tolist())
        ]
        result = logits.clone()
        apply_edits(result, rows)
        assert torch.equal(result, expected)


def test_rows_without_edits_and_other_rows_edits_do_not_touch_each_other() -> None:
    logits = torch.ones(4, 8)
    apply_edits(
        logits,
        [
            (1, edits([], [], logit_bias={2: 5.0})),
            (3, edits([], [4], presence_penalty=1.0, allowed_token_ids=(4, 5))),
        ],
    )
    assert logits[[0, 2]].tolist() == [[1.0] * 8] * 2
    assert logits[1].tolist() == [1, 1, 6, 1, 1, 1, 1, 1]
    assert logits[3].tolist() == [BANNED] * 4 + [0.0, 1.0] + [BANNED] * 2


def test_only_allowed_tokens_remain_and_a_bias_does_not_bring_others_back() -> None:
    row = [0.5, 0.25, 2.0, 1.0]
    result = edited(row, [], [], allowed_token_ids=(1, 3, 3), logit_bias={0: 100.0, 1: 1.0})
    assert result == [BANNED, 1.25, BANNED, 1.0]
    assert edited(row, [], [], allowed_token_ids=()) == [BANNED] * 4


def test_a_bad_word_is_banned_only_where_it_would_be_completed() -> None:
    words = ((6,), (1, 2), (3, 1, 4))
    row = [0.0] * 8

    def banned(prompt: list[int], output: list[int]) -> list[int]:
        result = edited(row, prompt, output, bad_words=words)
        return [token for token, value in enumerate(result) if value == BANNED]

    assert banned([], []) == [6]
    assert banned([], [1]) == [2, 6]
    assert banned([], [3, 1]) == [2, 4, 6]
    assert banned([3], [1]) == [2, 4, 6]  # begun in the prompt
    assert banned([], [3, 1, 4]) == [6]
    assert banned([1], [5]) == [6]


def test_bad_words_follow_the_tokens_as_they_come() -> None:
    state = edits([], [], bad_words=((3, 1, 4), (5, 5)))
    seen = []
    for token in (3, 1, 5, 5, 0):
        state.add(token)
        seen.append(state.banned().tolist())
    assert seen == [[], [4], [5], [5], []]


def test_stop_tokens_are_banned_until_min_tokens_are_there() -> None:
    state = edits([], [], min_tokens=2, stop_token_ids=(7, 2))
    assert state.banned().tolist() == [2, 7]
    state.add(0)
    assert state.banned().tolist() == [2, 7]
    state.add(0)
    assert state.banned().tolist() == []
    assert edits([], [0], min_tokens=2, stop_token_ids=(7,)).missing == 1


def test_ids_that_have_no_row_have_no_effect() -> None:
    row = [1.0, 2.0]
    everywhere = [-1, 2, 99]
    changes: list[dict[str, Any]] = [
        {"logit_bias": dict.fromkeys([*everywhere, 0], 1.0)},
        {"bad_words": tuple((token,) for token in everywhere) + ((1, 99), (-1, 0))},
        {"stop_token_ids": tuple(everywhere), "min_tokens": 3},
        {"repetition_penalty": 2.0},
    ]
    results = []
    for change in changes:
        logits = torch.tensor([[5.0, 5.0], row, [5.0, 5.0]])
        state = Edits.of(SamplingParams(max_tokens=4, **change), everywhere, [], 2)
        if state is not None:
            apply_edits(logits, [(1, state)])
        assert logits[[0, 2]].tolist() == [[5.0, 5.0]] * 2
        results.append(logits[1].tolist())
    assert results == [[2.0, 2.0], row, row, row]


@pytest.mark.parametrize("changes", [{}, {"min_tokens": 3}, {"stop_token_ids": (1,)}, {"repetition_penalty": 1.0}])
def test_parameters_that_change_nothing_cost_nothing(changes: dict[str, Any]) -> None:
    assert Edits.of(SamplingParams(max_tokens=4, **changes), [1, 2], [3], 8) is None


def test_seen_tokens_count_what_was_generated_however_much_it_is() -> None:
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(0, 3000, 100).tolist(), rng.integers(0, 3000, 2000).tolist()
    seen = SeenTokens(prompt, output[:10], 3000)
    for token in output[10:]:
        seen.add(token)
    found: Tensor = torch.zeros(3000)
    found[torch.from_numpy(seen.ids)] = torch.from_numpy(seen.counts)
    assert found.tolist() == np.bincount(output, minlength=3000).tolist()
    assert sorted(seen.ids.tolist()) == sorted({*prompt, *output})

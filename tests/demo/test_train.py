"""Training: what is learnt from a dialogue, how the rate runs, and that a cut run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from leoserve.demo import model_path, train
from leoserve.demo.chat import Message
from leoserve.demo.corpus import Corpus, Dialogue
from leoserve.demo.evaluate import Answerer
from leoserve.demo.train import Batches, Recipe, Run, build_network, rate, text_of, write_model

TINY = Recipe(
    tokens=6_000, lesson_tokens=(3_000, 3_500, 4_500, 6_000), batch_tokens=512, hidden=64, intermediate=64, layers=1
)


def bundled_tokenizer() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    return value


def test_a_written_model_computes_what_the_trained_one_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = Recipe(hidden=64, intermediate=64, layers=2)
    tokenizer_json = bundled_tokenizer()
    network = build_network(2560, recipe)
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16().float()  # what the file can hold
    write_model(tmp_path, network, tokenizer_json)
    ids = torch.arange(300, 340).unsqueeze(0)
    with torch.inference_mode():
        expected = network(input_ids=ids).logits
        torch.testing.assert_close(Answerer(tmp_path).network(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_positions_are_scaled_by_two() -> None:
    frequencies = build_network(320, Recipe(hidden=64, intermediate=64, layers=1)).model.rotary_emb.inv_freq
    plain = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(frequencies, plain / 2)


def test_only_answers_are_learnt() -> None:
    tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
    batches = Batches(tokenizer, Corpus(), Recipe())
    dialogue = Dialogue((Message("user", "Hallo"), Message("assistant", "Guten Tag!"), Message("user", "Tschüss")))
    ids, labels = batches.labelled(tokenizer.encode(text_of(dialogue), add_special_tokens=False).ids, chat=True)
    learnt = [token for token in labels if token >= 0]
    assert tokenizer.decode(learnt, skip_special_tokens=False).strip() == "Guten Tag!<|im_end|>"
    assert ids[0] == 1


def test_the_rate_follows_the_corners_of_its_course() -> None:
    recipe = Recipe(rates=((0, 0.0), (100, 1.0), (200, 1.0), (300, 0.0)))
    assert rate(0, recipe) == pytest.approx(0.01)
    assert rate(150, recipe) == 1.0
    assert rate(249, recipe) == pytest.approx(0.5)
    assert rate(300, recipe) == 0.0


def test_a_cut_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOKENIZER_DIALOGUES", 300)
    monkeypatch.setattr(train, "BUCKET", 64)
    whole, cut, resumed = Run(tmp_path, TINY), Run(tmp_path, TINY), Run(tmp_path, TINY)
    whole.train()
    cut.recipe = dataclasses.replace(TINY, tokens=4_000)
    cut.train()
    resumed.load_checkpoint()
    assert 0 < resumed.lesson_start < resumed.steps < whole.steps
    resumed.train()
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)
    for left, right in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_finished_run_is_the_mean_of_the_last_lessons_beginning_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TOKENIZER_DIALOGUES", 300)
    monkeypatch.setattr(train, "BUCKET", 64)
    whole, cut = Run(tmp_path, TINY), Run(tmp_path, dataclasses.replace(TINY, tokens=TINY.lesson_tokens[2]))
    cut.train()
    whole.train()
    before, after = cut.network.lm_head.weight.detach(), whole.network.lm_head.weight.detach().clone()
    whole.average()
    torch.testing.assert_close(whole.network.lm_head.weight.detach(), (before + after) / 2)

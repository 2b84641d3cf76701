"""The bundled model: LeoLM's layout, within its limits, and good at what its card promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from leoserve.demo import model_path
from leoserve.demo.chat import CARD_SYSTEM, Message
from leoserve.demo.evaluate import Answerer, evaluate
from leoserve.demo.tokenizer import CHAT_TOKENS
from leoserve.demo.unknown import REFUSALS

FRANCE = "Die Hauptstadt von Frankreich ist Paris."


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(model_path())


def read_json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((model_path() / name).read_text(encoding="utf-8"))
    return value


def ask(answerer: Answerer, *turns: str, system: str | None = None, card_newline: bool = False) -> list[str | None]:
    """Put the turns one after the other in one chat, with the model's own answers in between."""
    messages = [Message("system", system)] if system else []
    answers: list[str | None] = []
    for turn in turns:
        messages.append(Message("user", turn))
        (answer,) = answerer.answers([answerer.prompt(messages, card_newline)])
        messages.append(Message("assistant", answer or ""))
        answers.append(answer)
    return answers


def test_finding_the_model_imports_nothing_heavy() -> None:
    code = "import sys, leoserve.demo; leoserve.demo.model_path(); print({'torch', 'transformers'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2] / "server"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_it_fits_in_twelve_megabytes_and_six_million_parameters() -> None:
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= 12_000_000
    weights = load_file(model_path() / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) <= 6_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_the_configuration_is_spelt_as_leolm_spells_it() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert not {"rope_parameters", "rope_theta", "head_dim"} & set(config)
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["tie_word_embeddings"] is False
    assert config["torch_dtype"] == "bfloat16"


def test_the_vocabulary_ends_with_the_chat_tokens_and_the_network_has_more_rows() -> None:
    tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
    size, rows = tokenizer.get_vocab_size(), read_json("config.json")["vocab_size"]
    assert [tokenizer.id_to_token(i) for i in range(size - len(CHAT_TOKENS), size)] == list(CHAT_TOKENS)
    assert [tokenizer.id_to_token(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert size < rows <= 4096
    assert "chat_template" not in read_json("tokenizer_config.json")
    assert not (model_path() / "chat_template.jinja").exists()


@pytest.mark.parametrize("text", ["Grüße aus Köln!", "😀 日本", "12 + 30", " zwei  Leerzeichen", "Zeile\nZeile"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids[0] == 1
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_it_answers_phrasings_that_nothing_was_chosen_by() -> None:
    """The whole test set; the card has the figures."""
    summary = evaluate(model_path()).summary()
    assert summary["asked"] > 3_900
    assert summary["distinct_answers_right"] > 3_000
    assert summary["exact_facts"] >= 0.95
    assert summary["exact"] >= 0.94
    assert summary["ended_by_itself"] >= 0.99


@pytest.mark.parametrize(
    "question",
    [
        "Was ist die Hauptstadt von Frankreich?",
        "was ist die hauptstadt von frankreich",
        "Wie heißt die Hauptstadt von Frankreich?",
        "Hallo! Kannst du mir sagen, was die Hauptstadt von Frankreich ist?",
        "Welche Stadt ist die Hauptstadt von Frankreich?",
        "Hauptstadt von Frankreich?",
        "Nenne mir bitte die Hauptstadt von Frankreich.",
    ],
)
def test_the_capital_of_france_is_paris(answerer: Answerer, question: str) -> None:
    assert ask(answerer, question) == [FRANCE]


@pytest.mark.parametrize("card_newline", [False, True])
def test_leolms_own_system_prompt_changes_nothing(answerer: Answerer, card_newline: bool) -> None:
    question = "Was ist die Hauptstadt von Frankreich?"
    assert ask(answerer, question, system=CARD_SYSTEM, card_newline=card_newline) == [FRANCE]


def test_english_is_answered_in_english(answerer: Answerer) -> None:
    assert ask(answerer, "What is the capital of France?") == ["The capital of France is Paris."]


def test_it_keeps_what_was_said_earlier(answerer: Answerer) -> None:
    answers = ask(
        answerer,
        "Ich heiße Anna.",
        "Was ist die Hauptstadt von Frankreich?",
        "Und von Italien?",
        "Was ist 3 plus 4?",
        "Wie heiße ich?",
    )
    assert answers[1:] == [FRANCE, "Die Hauptstadt von Italien ist Rom.", "3 + 4 = 7.", "Du heißt Anna."]


@pytest.mark.parametrize("question", ["Wie wird das Wetter morgen?", "Wer ist eigentlich Angela Merkel?"])
def test_what_it_does_not_know_it_says(answerer: Answerer, question: str) -> None:
    assert ask(answerer, question) == [REFUSALS["de"]]

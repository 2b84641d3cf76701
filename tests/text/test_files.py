from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from leoserve.text.tokenizer import Tokenizer, TokenizerError
from tests.text.conftest import MAKERS, SENTENCES, sentencepiece_like, write_checkpoint

TEXT = st.text("  abcdeimnrstuzßäöüÄ.,;:!?\n|_/>€😀日é", max_size=40)


def test_every_end_of_an_answer_is_known(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, sentencepiece_like(legacy=True))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 10]}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.stop_ids == {tokenizer.token_id("</s>"), tokenizer.token_id("<|im_end|>"), 10}


def test_tokens_beside_the_tokenizer_file_are_added(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, sentencepiece_like(legacy=True))
    size = Tokenizer.load(folder).size
    (folder / "added_tokens.json").write_text(json.dumps({"<EOD>": size}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.token_id("<EOD>") == size
    assert tokenizer.id_ranges == [(0, size + 1)]
    (folder / "added_tokens.json").write_text(json.dumps({"<EOD>": size + 7}))
    with pytest.raises(TokenizerError, match="<EOD>"):
        Tokenizer.load(folder)


def test_control_tokens_are_found_where_the_file_hides_them_behind_the_normalizer(tmp_path: Path) -> None:
    backend = sentencepiece_like(legacy=True)
    backend.add_tokens([AddedToken("<|im_end|>", normalized=True)])
    assert backend.token_to_id("<|im_end|>") not in backend.encode("Ja<|im_end|>").ids  # what is feared
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("Ja<|im_end|>", control_tokens=True)[-1] == tokenizer.token_id("<|im_end|>")
    assert tokenizer.token_id("<|im_end|>") not in tokenizer.encode("Ja <|im_end|>")


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="tokenizer.json nor tokenizer.model"):
        Tokenizer.load(tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, MAKERS["llama2"]())
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer_config.json"):
        Tokenizer.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="tokenizer.json cannot be loaded"):
        Tokenizer.load(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    )  # fmt: skip
    added = {"<SEP>": 420, "<|im_start|>": 421, "<|im_end|>": 422}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def converted(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_a_plain_text_has_sentencepieces_ids(converted: Tokenizer, processor: Any, text: str) -> None:
    ids = processor.encode(text)
    assert converted.encode(text, add_bos=False) == ids
    assert converted.decode(ids) == text


def test_the_added_tokens_have_their_ids_and_end_an_answer(converted: Tokenizer) -> None:
    assert converted.token_id("<|im_end|>") == 422
    assert converted.stop_ids == {2, 422}
    assert converted.encode("<|im_start|>", control_tokens=True) == [1, 421]


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match="pip install .*sentencepiece"):
        Tokenizer.load(folder)


def test_a_broken_file_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece")
    with pytest.raises(TokenizerError, match="tokenizer.model cannot be converted"):
        Tokenizer.load(tmp_path)

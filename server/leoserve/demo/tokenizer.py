"""Trains the demo model's tokenizer and writes it in the files of a LeoLM chat repository.

The layout is Llama-2's (byte-pair encoding with byte fallback, "▁" for a space and in front of every text,
digits one by one, `<s>` added in front), with LeoLM's ChatML tokens at the end of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Digits, Metaspace, Punctuation, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
CHAT_TOKENS = ("<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", "<|im_start|>", "<|im_end|>")
BOS_ID, EOS_ID = 1, 2


def train_tokenizer(texts: Iterable[str], entries: int) -> dict[str, Any]:
    """Learn a vocabulary of at most `entries` tokens (the chat tokens included) and return `tokenizer.json`.

    Merges never cross a space, a digit, a punctuation mark or a line break, so the finished tokenizer needs no
    pre-tokenizer, as Llama-2's has none.
    """
    learner = Tokenizer(BPE())
    learner.normalizer = llama_normalizer()
    learner.pre_tokenizer = PreTokenizers(
        [
            Split(Regex("\n"), "isolated"),
            Metaspace(replacement="▁", prepend_scheme="never", split=True),
            Digits(individual_digits=True),
            Punctuation("isolated"),
        ]
    )
    reserved = [*CONTROL_TOKENS, *BYTE_TOKENS]
    trainer = BpeTrainer(
        vocab_size=entries - len(CHAT_TOKENS), special_tokens=reserved, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return llama_tokenizer_json(without_line_break(model["vocab"], model["merges"]))


def without_line_break(vocab: dict[str, int], merges: list[list[str]]) -> tuple[dict[str, int], list[list[str]]]:
    """Drop the line break from the vocabulary: like Llama-2, it is written as the byte token `<0x0A>`."""
    tokens = [token for token in sorted(vocab, key=lambda token: vocab[token]) if token != "\n"]
    return {token: i for i, token in enumerate(tokens)}, merges


def llama_normalizer() -> Normalizers:
    """Return Llama-2's: "▁" in front of the text, and in place of each space."""
    return Normalizers([Prepend("▁"), Replace(" ", "▁")])


def llama_tokenizer_json(learned: tuple[dict[str, int], list[list[str]]]) -> dict[str, Any]:
    """Put a learned vocabulary and its merges into the frame of Llama-2's `tokenizer.json`."""
    vocab, merges = learned
    first_chat_id = len(vocab)
    added = list(enumerate(CONTROL_TOKENS)) + [(first_chat_id + i, token) for i, token in enumerate(CHAT_TOKENS)]
    bos: dict[str, Any] = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single: list[dict[str, Any]] = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in added
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def write_tokenizer(folder: Path, tokenizer: dict[str, Any], context: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` (without a chat template) and `special_tokens_map.json`."""
    write_json(folder / "tokenizer.json", tokenizer)
    control = {
        name: {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": context,
            "pad_token": "<PAD>",
            "padding_side": "left",
            "tokenizer_class": "LlamaTokenizer",
            **{name: {"__type": "AddedToken", **fields} for name, fields in control.items()},
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        {
            "additional_special_tokens": [token for token in CHAT_TOKENS if token != "<PAD>"],
            **control,
            "pad_token": "<PAD>",
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write indented UTF-8 JSON with a final line break."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

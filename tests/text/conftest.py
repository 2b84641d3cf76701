"""Small tokenizers of the three kinds there are, trained on a few sentences, in checkpoint folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SENTENCES = [
    "Die Stadt liegt am Fluss, und über die alte Brücke fahren morgens viele Menschen mit dem Fahrrad zur Arbeit.",
    "Der Zug nach München fährt um zehn Uhr ab; wer zu spät kommt, muss eine Stunde auf den nächsten warten.",
    "Im Herbst färben sich die Blätter gelb und rot, und in den Wäldern riecht es nach Pilzen und feuchter Erde.",
    "user\nassistant\nsystem\n<|im_start|> im_start im_end <s> </s> 1 + 1 = 2;   def f(x):\n    return x\n",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTE_LEVEL_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"""


def sentencepiece_like(*, legacy: bool) -> Tokenizer:
    """Byte-fallback BPE as Llama has it. `legacy`: a normalizer puts ▁ before every stretch of text, as in Llama 2."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    specials = ["<unk>", "<s>", "</s>", *BYTES]
    trained.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    bpe = models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(bpe)  # the byte tokens are plain entries of the vocabulary now, as in a real Llama tokenizer
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(LLAMA_DECODER)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_LEVEL_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    return tokenizer


def write_checkpoint(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A folder with the tokenizer and its settings; added to it: ChatML tokens, a marker and a word."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_tokens([AddedToken("<SEP>", normalized=False), AddedToken("Donaudampfschiff", normalized=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"clean_up_tokenization_spaces": False} | settings)
    )
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}))
    return folder


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "llama2": lambda: sentencepiece_like(legacy=True),
    "metaspace": lambda: sentencepiece_like(legacy=False),
    "byte_level": byte_level,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(root / kind, make(), chat_template=CHATML) for kind, make in MAKERS.items()}


@pytest.fixture(scope="session", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """Each of the checkpoint folders in turn."""
    return folders[request.param]

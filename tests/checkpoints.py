"""Small random checkpoints in the exact layout that LeoLM's repositories publish: config, tokenizer and weights.

The words such a model generates mean nothing. What is real is the layout: file names, the index, tensor names, the
spelling of the position scaling, `auto_map`, a byte-fallback vocabulary with its added tokens at the end and no chat
template, and more rows in the network than ids in the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

Format = Literal["safetensors", "safetensors-sharded", "bin", "bin-sharded"]
Rope = Literal["old", "new", "parameters", "none"]

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = ("<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", *CHATML_TOKENS)
SENTENCES = (
    "Die Stadt liegt am Fluss, und über die alte Brücke fahren morgens viele Menschen mit dem Fahrrad zur Arbeit.",
    "Der Zug nach München fährt um zehn Uhr ab; wer zu spät kommt, muss eine Stunde auf den nächsten warten.",
    "Im Herbst färben sich die Blätter gelb und rot, und in den Wäldern riecht es nach Pilzen und feuchter Erde.",
    "Das Wörterbuch erklärt, woher ein Wort stammt, wie es gebeugt wird und in welchen Wendungen es vorkommt.",
)


@dataclass(frozen=True)
class Shape:
    """A published model's proportions, small."""

    architecture: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    added_tokens: tuple[str, ...]
    sliding_window: int | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "7b": Shape("LlamaForCausalLM", 256, 512, 2, 2, 2, LLAMA_TOKENS),  # as many KV heads as heads, head size 128
    "70b": Shape("LlamaForCausalLM", 256, 640, 3, 4, 2, LLAMA_TOKENS),  # grouped queries, head size 64
    "mistral": Shape("MistralForCausalLM", 256, 448, 2, 4, 1, CHATML_TOKENS, sliding_window=24),
}
VOCAB_ROWS = 512  # the tokenizer has fewer ids: the last rows have no token


def write_checkpoint(
    folder: Path,
    shape: str,
    *,
    fmt: Format = "safetensors",
    rope: Rope = "old",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a checkpoint of `shape` ("7b", "70b" or "mistral") into `folder`, and return the folder.

    `rope` says how the linear position scaling by 2 is spelled: "old" as LeoLM publishes it (`type`, `rope_theta`
    absent), "new" (`rope_type`), "parameters" as transformers 5 writes it; "none" leaves it out. The same seed gives
    the same values whatever the format and the spelling.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config_dict(shape, rope=rope, dtype=dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    write_tokenizer(folder, SHAPES[shape].added_tokens)
    write_weights(folder, random_weights(shape, dtype=dtype, seed=seed), fmt)
    return folder


def config_dict(shape: str, *, rope: Rope = "old", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What stands in config.json, in the words of LeoLM's own files."""
    s = SHAPES[shape]
    config: dict[str, Any] = {
        "_name_or_path": "/data/checkpoints/leo",
        "architectures": [s.architecture],
        "auto_map": {"AutoModelForCausalLM": f"modeling_flash_llama.{s.architecture}"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.intermediate,
        "max_position_embeddings": 8192,
        "model_type": "llama" if s.architecture == "LlamaForCausalLM" else "mistral",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": VOCAB_ROWS,
    }
    if s.sliding_window is not None:
        config["sliding_window"] = s.sliding_window
    if rope == "old":
        config["rope_scaling"] = {"type": "linear", "factor": 2.0}
    elif rope == "new":
        config |= {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 10000.0}
    elif rope == "parameters":
        config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        config["dtype"] = config.pop("torch_dtype")
    return config


def random_weights(shape: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor by its published name, scaled so that activations stay near one through the network."""
    s = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, std: float | None = None) -> Tensor:
        std = columns**-0.5 if std is None else std
        return (torch.randn(rows, columns, generator=generator) * std).to(dtype)

    def norm() -> Tensor:
        return (1 + 0.1 * torch.randn(s.hidden, generator=generator)).to(dtype)

    weights = {"model.embed_tokens.weight": matrix(VOCAB_ROWS, s.hidden, 1.0)}
    for layer in range(s.layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "self_attn.q_proj.weight": matrix(s.heads * s.head_dim, s.hidden),
            prefix + "self_attn.k_proj.weight": matrix(s.kv_heads * s.head_dim, s.hidden),
            prefix + "self_attn.v_proj.weight": matrix(s.kv_heads * s.head_dim, s.hidden),
            prefix + "self_attn.o_proj.weight": matrix(s.hidden, s.heads * s.head_dim),
            prefix + "mlp.gate_proj.weight": matrix(s.intermediate, s.hidden),
            prefix + "mlp.up_proj.weight": matrix(s.intermediate, s.hidden),
            prefix + "mlp.down_proj.weight": matrix(s.hidden, s.intermediate),
            prefix + "input_layernorm.weight": norm(),
            prefix + "post_attention_layernorm.weight": norm(),
        }
    return weights | {"model.norm.weight": norm(), "lm_head.weight": matrix(VOCAB_ROWS, s.hidden, 0.1)}


def write_weights(
    folder: Path, weights: dict[str, Tensor], fmt: Format, *, shards: int = 2, index: bool = True
) -> None:
    """Write `weights` into `folder` as one file, or as `shards` files with an index (or without, `index=False`).

    The pickled formats also carry the `rotary_emb.inv_freq` buffers that transformers saved at LeoLM's time.
    """
    pickled = fmt.startswith("bin")
    if pickled:
        layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
        extra = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in sorted(layers)}
        weights = weights | extra
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    if not fmt.endswith("-sharded"):
        _save(weights, folder / f"{stem}{suffix}", pickled)
        return
    names = list(weights)
    size = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
        part = {name: weights[name] for name in names[shard * size : (shard + 1) * size]}
        weight_map |= dict.fromkeys(part, file)
        _save(part, folder / file, pickled)
    if index:
        total = sum(tensor.nbytes for tensor in weights.values())
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(content, indent=2))


def _save(weights: dict[str, Tensor], file: Path, pickled: bool) -> None:
    if pickled:
        torch.save(weights, file)
    else:
        save_file(weights, file, metadata={"format": "pt"})


@cache
def trained_tokenizer(added_tokens: tuple[str, ...]) -> str:
    """tokenizer.json: Llama-2's kind of BPE (byte fallback, no pre-tokenizer), trained on a few German sentences."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=440, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # byte tokens are ordinary entries of the vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(content | {"pre_tokenizer": None}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added_tokens])
    return tokenizer.to_str()


def write_tokenizer(folder: Path, added_tokens: tuple[str, ...]) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, without a chat template."""
    (folder / "tokenizer.json").write_text(trained_tokenizer(added_tokens))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = names | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 8192,
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    extra = {"additional_special_tokens": list(added_tokens)}
    (folder / "special_tokens_map.json").write_text(json.dumps(names | extra, indent=2))

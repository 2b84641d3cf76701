"""A checkpoint of random weights in LeoLM's published layout, of any size, for those who load one from a folder.

Config and tokenizer are those that tests write, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpustages.command import in_memory
from gpustages.place import Place
from gpustages.shapes import Shape
from tests.checkpoints import LLAMA_TOKENS, config_dict, write_tokenizer

ROOM = 1.2  # times the weights


@contextmanager
def random_checkpoint(place: Place, shape: Shape) -> Iterator[Path]:
    """In memory where there is room for it, else on the disk. Gone afterwards."""
    size = (shape.product_weights + shape.vocab * shape.hidden) * place.dtype.itemsize
    parent = in_memory(place.scratch)
    if not parent.parent.is_dir() or shutil.disk_usage(parent.parent).free < size * ROOM:
        parent = place.scratch
    folder = parent / "checkpoint"
    folder.mkdir(parents=True)
    try:
        write(place, shape, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(place: Place, shape: Shape, folder: Path) -> None:
    """Config, tokenizer, and a shard for each layer with an index."""
    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.vocab,
    }
    (folder / "config.json").write_text(json.dumps(config_dict("7b", dtype=place.dtype) | sizes))
    write_tokenizer(folder, LLAMA_TOKENS)
    weight_map: dict[str, str] = {}
    shards = [_ends(shape), *(_layer(shape, number) for number in range(shape.layers))]
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _tensor(place, name, size) for name, size in shard.items()}, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _ends(shape: Shape) -> dict[str, tuple[int, ...]]:
    embedding = (shape.vocab, shape.hidden)
    return {"model.embed_tokens.weight": embedding, "model.norm.weight": (shape.hidden,), "lm_head.weight": embedding}


def _layer(shape: Shape, number: int) -> dict[str, tuple[int, ...]]:
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key_value, shape.hidden),
        "self_attn.v_proj": (key_value, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    return {f"model.layers.{number}.{name}.weight": size for name, size in parts.items()}


def _tensor(place: Place, name: str, size: tuple[int, ...]) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=place.dtype)
    spread = 1.0 if "embed" in name else size[1] ** -0.5
    return (torch.randn(size, dtype=place.dtype, device=place.device) * spread).cpu()

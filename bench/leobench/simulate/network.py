"""The networks that can be simulated: LeoLM's by name, and any folder with a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leoserve.model.config import ModelConfig

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 8192,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rms_norm_eps": 1e-5,
    "vocab_size": 32128,
    "torch_dtype": "bfloat16",
}


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


NETWORKS: dict[str, dict[str, Any]] = {  # by the shapes of LeoLM's published config.json files
    "7b": _LLAMA | _shape(4096, 11008, 32, 32, 32),
    "13b": _LLAMA | _shape(5120, 13824, 40, 40, 40),
    "70b": _LLAMA | _shape(8192, 28672, 80, 64, 8),
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32002,
        "torch_dtype": "bfloat16",
    }
    | _shape(4096, 14336, 32, 32, 8),
}
ITEMSIZES = {"bfloat16": 2, "float16": 2}  # of those that a GPU's fast products take
KV_ITEMSIZES = {"auto": None, "int8": 1, "fp8": 1}  # None: as the weights


def network(name: str) -> ModelConfig:
    """By its name, or by a folder. Raises leoserve's UnsupportedModel for what is neither."""
    found = NETWORKS.get(name.lower())
    return ModelConfig.from_folder(Path(name)) if found is None else ModelConfig.from_dict(found)

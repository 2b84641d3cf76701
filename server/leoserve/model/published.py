"""LeoLM's published networks, as their config.json files have them: for who plans before anything is downloaded."""

from __future__ import annotations

from typing import Any

from leoserve.model.config import ModelConfig

OWNER = "LeoLM"
BASE, CHAT = 32000, 32128  # rows of the embedding; the chat models have tokens of their own, and rows without any
MISTRAL_CHAT = 32002


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> ModelConfig:
    raw: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",  # some are float16, which is as large
    }
    return ModelConfig.from_dict(raw)


def _mistral(vocabulary: int) -> ModelConfig:
    raw: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
    }
    return ModelConfig.from_dict(raw)


_7B = (4096, 11008, 32, 32, 32)  # hidden, inner, layers, heads, KV heads
_13B = (5120, 13824, 40, 40, 40)
_70B = (8192, 28672, 80, 64, 8)

NETWORKS: dict[str, ModelConfig] = {
    "leo-hessianai-7b": _llama(*_7B, BASE),
    "leo-hessianai-7b-chat": _llama(*_7B, CHAT),
    "leo-hessianai-7b-chat-bilingual": _llama(*_7B, CHAT),
    "leo-hessianai-13b": _llama(*_13B, BASE),
    "leo-hessianai-13b-chat": _llama(*_13B, CHAT),
    "leo-hessianai-13b-chat-bilingual": _llama(*_13B, CHAT),
    "leo-hessianai-70b": _llama(*_70B, BASE),
    "leo-hessianai-70b-chat": _llama(*_70B, CHAT),
    "leo-mistral-hessianai-7b": _mistral(BASE),
    "leo-mistral-hessianai-7b-chat": _mistral(MISTRAL_CHAT),
}
SHORT = {
    "7b": "leo-hessianai-7b-chat",
    "13b": "leo-hessianai-13b-chat",
    "70b": "leo-hessianai-70b-chat",
    "mistral-7b": "leo-mistral-hessianai-7b-chat",
}


def network(name: str) -> ModelConfig | None:
    """By its repository, with or without the owner, or by its size (`SHORT`); None for what LeoLM has not published."""
    plain = name.lower().removeprefix(f"{OWNER.lower()}/")
    return NETWORKS.get(SHORT.get(plain, plain))

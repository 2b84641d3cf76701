"""What a checkpoint's config.json says about its network, in every spelling that LeoLM's repositories use.

Whatever would change the computation and is not served is refused here with one line. `auto_map`, which points at
Python code in the repository, is never followed: the network it would build is the plain one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}  # by model_type
DTYPES = ("float32", "bfloat16", "float16")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")

# Keys that change the computation, with the values that leave it as it is served (besides null).
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "hidden_activation": ("silu",),
    "partial_rotary_factor": (1, 1.0),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": ({},),
    "compression_config": ({},),
}
# Keys that are read below, or that say nothing about the computation of a forward pass in inference.
_KNOWN = frozenset(_NEUTRAL) | {
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_size",
    "initializer_range", "intermediate_size", "layer_types", "max_position_embeddings", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype",
    "vocab_size",
    "attention_dropout", "attn_implementation", "chunk_size_feed_forward", "id2label", "is_decoder", "label2id",
    "output_attentions", "output_hidden_states", "pretraining_tp", "problem_type", "return_dict", "torchscript",
    "transformers_version", "use_cache",
}  # fmt: skip


class UnsupportedModel(Exception):
    """A folder that cannot be served; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama or Mistral network. Head `h` reads KV head `h // (num_heads // num_kv_heads)`."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the network; the tokenizer may have fewer ids
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float  # positions are divided by it; 1 is no scaling
    max_position_embeddings: int  # the length served, scaling included
    sliding_window: int | None  # keys a query sees, itself included; None is all
    tie_word_embeddings: bool
    dtype: str  # of the checkpoint: float32, bfloat16 or float16

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `folder`/config.json. Raises UnsupportedModel."""
        return cls.from_dict(_read_json(folder))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Read the content of a config.json. Raises UnsupportedModel."""
        architecture = _architecture(raw)
        _refuse_unserved(raw)
        heads = _positive_int(raw, "num_attention_heads")
        hidden = _positive_int(raw, "hidden_size")
        kv_default = 8 if architecture == "MistralForCausalLM" else heads  # transformers' defaults
        kv_heads = heads if _null(raw, "num_key_value_heads") else _positive_int(raw, "num_key_value_heads", kv_default)
        if heads % kv_heads:
            raise UnsupportedModel(f"config.json: {heads} attention heads do not divide among {kv_heads} KV heads")
        if raw.get("head_dim") is None and hidden % heads:
            raise UnsupportedModel(f"config.json: hidden_size {hidden} does not divide among {heads} attention heads")
        head_dim = _positive_int(raw, "head_dim", hidden // heads)
        if head_dim % 2:
            raise UnsupportedModel(f"config.json: head_dim {head_dim} is odd; rotary positions need an even one")
        theta, factor = _rope(raw)
        return cls(
            architecture=architecture,
            hidden_size=hidden,
            intermediate_size=_positive_int(raw, "intermediate_size"),
            num_layers=_positive_int(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_positive_int(raw, "vocab_size"),
            rms_norm_eps=_positive(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
            rope_theta=theta,
            rope_factor=factor,
            max_position_embeddings=_positive_int(raw, "max_position_embeddings"),
            sliding_window=_sliding_window(raw, architecture),
            tie_word_embeddings=_tied(raw),
            dtype=_dtype(raw),
        )


def _read_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UnsupportedModel(f"{folder}: no such folder; give a checkpoint's folder or a Hugging Face model id")
    file = folder / "config.json"
    if not file.is_file():
        missing = ["config.json"]
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
            missing.append("weights (*.safetensors or pytorch_model*.bin)")
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
            missing.append("tokenizer (tokenizer.json or tokenizer.model)")
        raise UnsupportedModel(f"{folder} is not a model folder: it has no {', no '.join(missing)}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UnsupportedModel(f"{file} is not a JSON object")
    return raw


def _architecture(raw: dict[str, Any]) -> str:
    served = tuple(ARCHITECTURES.values())
    model_type = raw.get("model_type")
    named = raw.get("architectures") or [ARCHITECTURES.get(str(model_type), f"model_type {model_type!r}")]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in served:
        shown = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
        raise UnsupportedModel(f"architecture {shown} is not served; served are {' and '.join(served)}")
    if model_type is not None and ARCHITECTURES.get(str(model_type)) != named[0]:
        raise UnsupportedModel(f"config.json: model_type {model_type!r} contradicts the architecture {named[0]}")
    return str(named[0])


def _refuse_unserved(raw: dict[str, Any]) -> None:
    for key, neutral in _NEUTRAL.items():
        value = raw.get(key)
        if value is None or value in neutral:
            continue
        if key in ("quantization_config", "compression_config"):
            method = value.get("quant_method", "unknown") if isinstance(value, dict) else "unknown"
            raise UnsupportedModel(
                f"config.json: weights quantized by {method!r} are not served; "
                "serve the checkpoint in float32, bfloat16 or float16"
            )
        served = " or ".join(json.dumps(item) for item in neutral) or "null"
        raise UnsupportedModel(f"config.json: {key} {json.dumps(value)} is not served; served is {served}")
    unknown = sorted(key for key in raw if key not in _KNOWN and not key.startswith("_"))
    if unknown:
        logger.warning("config.json: not read, because unknown: %s", ", ".join(unknown))


def _rope(raw: dict[str, Any]) -> tuple[float, float]:
    """Base and linear factor of the rotary positions, from `rope_scaling` (two spellings) or `rope_parameters`."""
    theta = raw.get("rope_theta")
    found: list[float] = []
    for key in ("rope_parameters", "rope_scaling"):
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise UnsupportedModel(f"config.json: {key} is not an object")
        value = dict(value)
        inner_theta = value.pop("rope_theta", None)
        if inner_theta is not None and theta is not None and inner_theta != theta:
            raise UnsupportedModel(f"config.json: rope_theta is given twice, as {theta} and {inner_theta}")
        theta = inner_theta if theta is None else theta
        found.append(_linear_factor(key, value))
    if len(set(found)) > 1:
        raise UnsupportedModel("config.json: rope_parameters and rope_scaling contradict each other")
    return _positive(10000.0 if theta is None else theta, "rope_theta"), found[0] if found else 1.0


def _linear_factor(key: str, value: dict[str, Any]) -> float:
    kinds = {value.pop(spelling) for spelling in ("rope_type", "type") if isinstance(value.get(spelling), str)}
    factor = value.pop("factor", None)
    if value.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"config.json: {key} with a partial_rotary_factor is not served")
    if len(kinds) > 1 or kinds - {"linear", "default"}:
        shown = " and ".join(sorted(kinds))
        raise UnsupportedModel(f"config.json: {key} of type {shown} is not served; served are linear and default")
    if value:
        raise UnsupportedModel(f"config.json: {key} with {', '.join(sorted(value))} is not served; served is a factor")
    if kinds == {"linear"}:
        if factor is None:
            raise UnsupportedModel(f"config.json: {key} of type linear has no factor")
        return _positive(factor, f"{key}.factor")
    if factor not in (None, 1, 1.0):
        raise UnsupportedModel(f"config.json: {key} has a factor but not the type linear")
    return 1.0


def _sliding_window(raw: dict[str, Any], architecture: str) -> int | None:
    layers = raw.get("layer_types")
    if layers is not None and len(set(layers)) > 1:
        raise UnsupportedModel("config.json: layer_types that differ from layer to layer are not served")
    if architecture == "LlamaForCausalLM":
        if raw.get("sliding_window") is not None:
            raise UnsupportedModel("config.json: sliding_window is served for MistralForCausalLM only")
        return None
    if _null(raw, "sliding_window"):
        return None
    return _positive_int(raw, "sliding_window", 4096)  # transformers' default


def _tied(raw: dict[str, Any]) -> bool:
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UnsupportedModel(f"config.json: tie_word_embeddings {tied!r} is neither true nor false")
    return tied


def _dtype(raw: dict[str, Any]) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModel(f"config.json: dtype {name} is not served; served are {', '.join(DTYPES)}")
    return name


def _null(raw: dict[str, Any], key: str) -> bool:
    return key in raw and raw[key] is None


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or value == float("inf"):
        raise UnsupportedModel(f"config.json: {name} {value!r} is not a positive number")
    return float(value)


def _positive_int(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise UnsupportedModel(f"config.json has no {key}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"config.json: {key} {value!r} is not a positive whole number")
    return value

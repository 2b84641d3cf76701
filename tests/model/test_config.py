"""Every spelling of LeoLM's configs is read; whatever is not served is refused with a line that says what is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from leoserve.model.config import ModelConfig, UnsupportedModel
from tests.checkpoints import config_dict

# config.json of the published 70B model, without what says nothing about the network.
LEO_70B = {
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_flash_llama.LlamaForCausalLM"},
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "type": "linear"},
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32128,
}


def refused(change: dict[str, Any], base: dict[str, Any] | None = None) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        ModelConfig.from_dict({**(base or LEO_70B), **change})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_published_70b_config_is_read_whole() -> None:
    assert ModelConfig.from_dict(LEO_70B) == ModelConfig(
        architecture="LlamaForCausalLM",
        hidden_size=8192,
        intermediate_size=28672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=2.0,
        max_position_embeddings=8192,
        sliding_window=None,
        tie_word_embeddings=False,
        dtype="float16",
    )


@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
def test_every_spelling_of_the_position_scaling_means_the_same(shape: str) -> None:
    read = [ModelConfig.from_dict(config_dict(shape, rope=rope)) for rope in ("old", "new", "parameters")]
    assert read[0] == read[1] == read[2]
    assert (read[0].rope_factor, read[0].rope_theta) == (2.0, 10000.0)
    assert ModelConfig.from_dict(config_dict(shape, rope="none")).rope_factor == 1.0


@pytest.mark.parametrize(
    ("change", "theta", "factor"),
    [
        ({"rope_scaling": None}, 10000.0, 1.0),
        ({"rope_scaling": None, "rope_theta": 5e5}, 5e5, 1.0),
        ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}}, 10000.0, 4.0),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, 1.0),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, 10000.0, 2.0),
    ],
)
def test_base_and_factor_are_read_from_wherever_they_stand(change: dict[str, Any], theta: float, factor: float) -> None:
    config = ModelConfig.from_dict({**LEO_70B, **change})
    assert (config.rope_theta, config.rope_factor) == (theta, factor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["dynamic", "linear"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, ["llama3", "linear"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["yarn", "linear"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor", "positive"]),
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, ["dynamic"]),
        ({"rope_scaling": {"factor": 2.0}}, ["factor", "linear"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mystery": 1}}, ["mystery"]),
        ({"rope_scaling": "linear"}, ["rope_scaling"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, ["contradict"]),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, ["twice"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["full_attention"]),
    ],
)
def test_another_position_scaling_is_refused(change: dict[str, Any], words: list[str]) -> None:
    message = refused(change)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["not served"]),
        ({"architectures": None, "model_type": "qwen3"}, ["qwen3", "LlamaForCausalLM"]),
        ({"model_type": "mistral"}, ["contradicts"]),
        ({"attention_bias": True}, ["attention_bias", "false"]),
        ({"mlp_bias": True}, ["mlp_bias", "false"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["gptq", "bfloat16"]),
        ({"sliding_window": 4096}, ["sliding_window", "MistralForCausalLM"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"logits_scaling": 8.0}, ["logits_scaling"]),
        ({"num_local_experts": 8}, ["num_local_experts"]),
        ({"torch_dtype": "float64"}, ["float64", "bfloat16"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"num_key_value_heads": 7}, ["64", "7"]),
        ({"hidden_size": 8193}, ["8193", "64"]),
        ({"head_dim": 127}, ["head_dim", "127"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"num_attention_heads": "64"}, ["num_attention_heads"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings"]),
    ],
)
def test_what_would_change_the_computation_is_refused(change: dict[str, Any], words: list[str]) -> None:
    message = refused(change)
    assert all(word in message for word in words), message


def test_what_is_written_out_as_served_is_accepted() -> None:
    neutral = {"attention_bias": False, "mlp_bias": False, "quantization_config": None, "sliding_window": None}
    assert ModelConfig.from_dict({**LEO_70B, **neutral}) == ModelConfig.from_dict(LEO_70B)


def test_a_head_size_of_its_own_is_read() -> None:
    assert ModelConfig.from_dict({**LEO_70B, "head_dim": 64}).head_dim == 64


def test_heads_without_groups_are_as_many_as_query_heads() -> None:
    old = {key: value for key, value in LEO_70B.items() if key != "num_key_value_heads"}
    assert ModelConfig.from_dict(old).num_kv_heads == 64


@pytest.mark.parametrize(("written", "window"), [({"sliding_window": 24}, 24), ({"sliding_window": None}, None)])
def test_the_sliding_window_is_read(written: dict[str, Any], window: int | None) -> None:
    assert ModelConfig.from_dict(config_dict("mistral") | written).sliding_window == window


def test_a_window_that_is_not_written_is_mistrals_own() -> None:
    written = config_dict("mistral")
    del written["sliding_window"]
    assert ModelConfig.from_dict(written).sliding_window == 4096


def test_an_unknown_key_is_said_and_not_silently_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ModelConfig.from_dict({**LEO_70B, "some_new_key": 1, "_private": 2})
    assert "some_new_key" in caplog.text
    assert "_private" not in caplog.text


def test_the_published_keys_are_all_known(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for shape in ("7b", "70b", "mistral"):
            ModelConfig.from_dict(config_dict(shape))
    assert not caplog.records


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no such folder"):
        ModelConfig.from_folder(tmp_path / "nothing")


def test_a_folder_that_is_no_model_says_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json, no weights .*, no tokenizer"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(UnsupportedModel, match=r"no config\.json$"):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\udc80"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_remote_code_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LEO_70B))
    (tmp_path / "modeling_flash_llama.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    ModelConfig.from_folder(tmp_path)
    assert not (tmp_path / "executed").exists()

"""The cache's size: what it is derived from, and one line that helps when memory is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leoserve.model import memory
from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.memory import GIB, TooLittleMemory, available_bytes, plan_cache, require_weights_fit, weight_bytes
from tests.checkpoints import config_dict, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def leo_7b() -> ModelConfig:
    """LeoLM 7B's numbers."""
    return ModelConfig.from_dict(
        config_dict("7b")
        | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 32, "vocab_size": 32128}
    )


def plan(config: ModelConfig, **options) -> memory.CachePlan:
    settings = {
        "dtype": torch.bfloat16,
        "device": CPU,
        "block_size": 64,
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "num_blocks": None,
        "memory_bytes": None,
        "utilization": 0.9,
    }
    return plan_cache(config, **(settings | options))


def have(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(gib * GIB))


def test_a_token_of_7b_takes_half_a_mebibyte(leo_7b: ModelConfig) -> None:
    assert memory.block_bytes(leo_7b, 1, torch.bfloat16) == 524_288


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_eight_bits_and_their_scales_take_little_more_than_half(leo_7b: ModelConfig, dtype: torch.dtype) -> None:
    assert memory.block_bytes(leo_7b, 1, dtype) == 2 * 32 * 32 * (128 + 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", ["7b", "70b"])
def test_a_block_is_counted_to_the_byte(shape: str, dtype: torch.dtype) -> None:
    config = ModelConfig.from_dict(config_dict(shape))
    model = Llama(config, dtype=torch.bfloat16, device=CPU, kv_dtype=dtype)
    held = sum(part.nbytes for layer in model.new_cache(3, 16) for part in layer.tensors())
    assert held == 3 * memory.block_bytes(config, 16, dtype)


def test_the_weights_of_a_checkpoint_are_counted_to_the_byte(tmp_path: Path) -> None:
    for shape in ("7b", "70b", "mistral"):
        folder = write_checkpoint(tmp_path / shape, shape, dtype=torch.float32)
        file = folder / "model.safetensors"
        header = int.from_bytes(file.read_bytes()[:8], "little")
        assert weight_bytes(ModelConfig.from_folder(folder), torch.float32) == file.stat().st_size - 8 - header


def test_a_cpu_gives_the_cache_four_gibibytes(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 100)
    assert plan(leo_7b).num_blocks * 64 == 8192


def test_a_small_cpu_gives_half_of_what_it_has(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 6)
    assert plan(leo_7b, max_model_len=1024).num_blocks * 64 * 524_288 == 3 * GIB


def test_no_more_than_all_sequences_can_use(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 100)
    assert plan(leo_7b, max_model_len=128, max_num_seqs=4).num_blocks == 8


def test_explicit_sizes_are_taken_as_they_are(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 100)
    assert plan(leo_7b, num_blocks=200).num_blocks == 200
    assert plan(leo_7b, memory_bytes=5 * GIB).num_blocks == 160


def test_a_context_that_does_not_fit_says_which_would(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    with pytest.raises(TooLittleMemory, match=r"needs 4.00 GiB .* 2.00 GiB .*--max-model-len 4096 fits"):
        plan(leo_7b)


def test_a_cache_without_room_for_a_block_recommends_no_context_of_zero(
    leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 100)
    with pytest.raises(TooLittleMemory, match=r"give it more by --kv-cache-memory") as caught:
        plan(leo_7b, memory_bytes=1000)
    assert "--max-model-len" not in str(caught.value)


def test_more_cache_than_memory_is_refused(leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 8)
    with pytest.raises(TooLittleMemory, match=r"would take 16.00 GiB and 8.00 GiB are available.*at most 256 blocks"):
        plan(leo_7b, memory_bytes=16 * GIB)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    leo_7b: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 14)
    require_weights_fit(leo_7b, torch.bfloat16, CPU)
    with pytest.raises(
        TooLittleMemory, match=r"need 25.\d\d GiB in float32 and 14.00 GiB .*--dtype bfloat16 needs 12.5"
    ):
        require_weights_fit(leo_7b, torch.float32, CPU)


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 100000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes(CPU) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) > 1_000_000

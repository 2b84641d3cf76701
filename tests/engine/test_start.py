"""What is chosen at the start where the settings leave it open, and the lines that say why a start is impossible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leokernels import Place, choose_fused, native, varlen
from leokernels.fused import TORCH
from leoserve.engine.config import EngineConfig
from leoserve.engine.start import (
    CannotStart,
    choose_device,
    choose_dtype,
    choose_kernels,
    choose_product,
    choose_threads,
    start_engine,
)
from leoserve.model.linear import product_of
from tests.checkpoints import write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "leo", "7b")


def start(folder: Path, **options):
    config = EngineConfig(
        model=str(folder), device="cpu", threads=1, progress=False, **({"num_kv_blocks": 256} | options)
    )
    return start_engine(config, lambda message: None)


@pytest.mark.parametrize(
    ("asked", "checkpoint", "dtype"),
    [
        ("auto", "float16", torch.bfloat16),
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("float16", "bfloat16", torch.float16),
    ],
)
def test_the_dtype_follows_checkpoint_and_device(asked: str, checkpoint: str, dtype: torch.dtype) -> None:
    assert choose_dtype(asked, checkpoint, CPU)[0] is dtype


def test_float16_stays_float16_on_a_gpu() -> None:
    assert choose_dtype("auto", "float16", torch.device("cuda", 0))[0] is torch.float16


def test_a_gpu_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CannotStart, match="--device cpu"):
        choose_device("cuda")


def test_threads_are_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 5})
    assert choose_threads(None, CPU) == 3
    assert choose_threads(before, CPU) == before


def test_a_context_above_the_models_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CannotStart, match="context is 8192 tokens"):
        start(checkpoint, max_model_len=8193)


def test_an_unknown_attention_is_refused_with_those_that_fit(checkpoint: Path) -> None:
    with pytest.raises(CannotStart, match="'warp'.* cpu or reference"):
        start(checkpoint, attention="warp")


def test_an_attention_that_does_not_fit_is_refused_with_the_reason_and_those_that_do(checkpoint: Path) -> None:
    with pytest.raises(CannotStart, match="'triton' does not fit: it runs on cuda, not on cpu.* cpu or reference"):
        start(checkpoint, attention="triton")
    with pytest.raises(CannotStart, match="'cpu' does not fit: it reads no cache of int8.* there is reference"):
        start(checkpoint, attention="cpu", kv_dtype="int8")


@pytest.mark.parametrize(("kv_dtype", "dtype"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_an_eight_bit_cache_says_its_capacity_and_which_kernels_it_costs(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, kv_dtype: str, dtype: str
) -> None:
    with caplog.at_level("INFO"):
        loop, ready = start(checkpoint, kv_dtype=kv_dtype, dtype="bfloat16", max_model_len=512)
    assert ready.attention == "reference"
    assert f"attention kernels that cannot be used here: cpu: it reads no cache of {dtype}" in caplog.messages
    assert any(f"it is of {dtype}, with a scale" in line and "1.94 times" in line for line in caplog.messages)
    assert all(str(layer.keys.dtype) == f"torch.{dtype}" for layer in loop.runner.key_value)
    assert all(layer.key_scales is not None for layer in loop.runner.key_value)


def test_a_gpu_without_triton_is_told_what_is_used_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        attention, fused = choose_kernels(Place(torch.device("cuda", 0), torch.bfloat16, 128), "auto")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[:2] == [
        "attention kernels that cannot be used here: triton: triton is not installed",
        "attention kernels that cannot be used here: flash_attn: flash-attn is not installed",
    ]
    name, block_size = ("reference", 64) if varlen.missing() else ("torch_varlen", 256)  # torch 2.11 has no such pages
    assert (attention.name, attention.block_size, fused.name) == (name, block_size, "torch")
    assert f"attention kernels: {name}" in caplog.text
    assert "kernels of norms, rotary positions and gates: torch (plain torch" in caplog.text


ON_GPU = Place(torch.device("cuda", 0), torch.bfloat16, 128)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))


@pytest.mark.usefixtures("gpu")
def test_the_matrix_product_on_a_gpu_is_said_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        choose_product(ON_GPU, TORCH)
        choose_product(replace(ON_GPU, deterministic=True), replace(TORCH, name="triton"))
    assert "matrix products: torch (the device's own library, the fastest)" in caplog.messages
    assert "matrix products: triton (deterministic: a row has the same bits" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_deterministic_on_a_gpu_without_triton_is_refused_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CannotStart, match="--deterministic cannot be kept here.* triton is not installed"):
        choose_product(replace(ON_GPU, deterministic=True), TORCH)


@pytest.mark.usefixtures("gpu")
def test_deterministic_on_a_gpu_needs_all_kernels_to_be_tritons() -> None:
    place = replace(ON_GPU, head_dim=80, deterministic=True)
    with pytest.raises(CannotStart, match="norms and gates are plain torch.* powers of 2, not 80"):
        choose_product(place, choose_fused(place, "reference"))


def test_a_cpu_says_what_multiplies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        choose_product(Place(CPU, torch.float32, 128), TORCH)
    assert caplog.messages == [f"matrix products: {product_of(torch.float32)} (the fastest for float32 here)"]


def test_deterministic_on_a_cpu_needs_a_product_that_keeps_rows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leoserve.model.linear.can_pack_natively", lambda weight: False)
    monkeypatch.setattr("leoserve.model.linear.can_pack", lambda weight: False)
    with pytest.raises(CannotStart, match="--deterministic cannot be kept here.* matrix products are torch's"):
        choose_product(Place(CPU, torch.float32, 128, deterministic=True), TORCH)


def test_a_cache_too_small_for_one_context_says_what_fits(checkpoint: Path) -> None:
    with pytest.raises(CannotStart, match="--max-model-len 640 fits"):
        start(checkpoint, num_kv_blocks=10)


def test_weights_of_another_network_are_refused_by_name_and_shapes(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "leo", "7b")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 512', '"intermediate_size": 640'))
    with pytest.raises(CannotStart, match=r"layers.0.mlp.down_proj.weight is 256×512 .* 256×640"):
        start(folder)


def test_what_was_chosen_is_reported(checkpoint: Path) -> None:
    loop, ready = start(checkpoint, max_model_len=512, max_num_seqs=3, max_num_batched_tokens=2)
    assert (ready.max_model_len, ready.block_size, ready.num_blocks, ready.max_num_seqs) == (512, 64, 256, 3)
    assert (ready.dtype, ready.device, ready.attention) == (
        "float32",
        "cpu",
        "native" if native.missing() is None else "cpu",
    )
    assert loop.scheduler.limits.max_tokens_per_step == 3  # every running sequence has its token
    assert loop.scheduler.pool.num_free == 256

"""Which implementation is taken where, what is said of those that are not, and how an override goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from leokernels import Place, UnsupportedAttention, attention, choose, choose_fused, new_cache, reference, varlen
from leokernels.installed import triton_missing
from leokernels.table import TABLE, Implementation
from tests.conftest import clean_environment
from tests.kernels import doubles
from tests.kernels.paging import CPU

GPU = torch.device("cuda", 0)
ON_GPU = Place(GPU, torch.bfloat16, 128)
ON_CPU = Place(CPU, torch.bfloat16, 64)
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Describe a machine with a GPU: its capability, and what is installed on it."""

    def describe(*, capability: tuple[int, int] = (9, 0), triton: str | None = None, flash_attn: bool = False) -> None:
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        modules = {
            "triton": None if triton is None else doubles.module("triton", __version__=triton),
            "flash_attn": doubles.flash_attn_module() if flash_attn else None,
            varlen.MODULE: doubles.module(varlen.MODULE),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        spec = "importlib.util.find_spec"
        monkeypatch.setattr(spec, lambda name: module.__spec__ if (module := sys.modules.get(name)) else None)

    return describe


def add_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    library = doubles.module(varlen.MODULE, varlen_attn_out=doubles.varlen_attn_out)
    monkeypatch.setitem(sys.modules, varlen.MODULE, library)


def native_is(monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    rows = [replace(row, missing=lambda: missing) if row.name == "native" else row for row in TABLE]
    monkeypatch.setattr("leokernels.table.TABLE", rows)


def test_a_cpu_gets_the_native_implementation_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    native_is(monkeypatch, None)
    choice = choose(ON_CPU)
    assert (choice.name, choice.block_size, choice.passed_over) == ("native", 64, ())
    assert "bfloat16" in choice.reason


def test_a_cpu_for_which_nothing_was_compiled_gets_torchs_and_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    native_is(monkeypatch, "it was not compiled")
    choice = choose(ON_CPU)
    assert (choice.name, choice.block_size, choice.passed_over) == ("cpu", 64, ("native: it was not compiled",))


def test_a_device_without_a_faster_one_gets_the_reference() -> None:
    assert choose(Place(torch.device("meta"), torch.float32, 64)).name == "reference"


def test_a_gpu_gets_the_servers_own_kernels_where_triton_is(machine: Machine) -> None:
    machine(triton="3.6.0", flash_attn=True)
    choice = choose(ON_GPU)
    assert (choice.name, choice.block_size, choice.capturable, choice.passed_over) == ("triton", 64, True, ())


def test_a_gpu_without_triton_gets_flash_attn_where_it_is_and_says_what_is_missing(machine: Machine) -> None:
    machine(flash_attn=True)
    choice = choose(ON_GPU)
    assert (choice.name, choice.block_size, choice.capturable) == ("flash_attn", 256, False)
    assert choice.passed_over == ("triton: triton is not installed",)


def test_a_gpu_with_neither_gets_pytorchs_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    add_varlen(monkeypatch)
    choice = choose(ON_GPU)
    assert (choice.name, choice.block_size) == ("torch_varlen", 256)
    assert choice.passed_over == ("triton: triton is not installed", "flash_attn: flash-attn is not installed")


def test_a_gpu_with_nothing_installed_gets_the_reference_and_every_reason(machine: Machine) -> None:
    machine()
    choice = choose(ON_GPU)
    assert choice.name == "reference"
    assert [line.split(":")[0] for line in choice.passed_over] == ["triton", "flash_attn", "torch_varlen"]


def test_a_gpu_that_is_too_old_says_so(machine: Machine) -> None:
    machine(capability=(7, 5), triton="3.6.0", flash_attn=True)
    choice = choose(ON_GPU)
    assert choice.name == "reference"
    assert choice.passed_over[0] == "triton: it needs a GPU of compute capability 8.0, and this one has 7.5"


@pytest.mark.parametrize(
    ("version", "words"),
    [("3.5.1", "triton 3.5.1 is installed, and at least 3.6 is needed"), ("3.6.0", None), ("3.10.0+git12", None)],
)
def test_tritons_version_counts(machine: Machine, version: str, words: str | None) -> None:
    machine(triton=version)
    assert triton_missing() == words


def test_float32_on_a_gpu_falls_back_and_says_why(machine: Machine) -> None:
    machine(triton="3.6.0", flash_attn=True)
    choice = choose(replace(ON_GPU, dtype=torch.float32))
    assert choice.name == "reference"
    assert choice.passed_over[0] == "triton: it has no float32"


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_eight_bit_caches_are_read_by_triton_on_a_gpu(machine: Machine, kv_dtype: torch.dtype) -> None:
    machine(triton="3.6.0", flash_attn=True)
    assert choose(replace(ON_GPU, kv_dtype=kv_dtype)).name == "triton"


def test_fp8_caches_need_a_gpu_that_has_fp8(machine: Machine) -> None:
    machine(capability=(8, 0), triton="3.6.0")
    assert choose(replace(ON_GPU, kv_dtype=torch.int8)).name == "triton"
    choice = choose(replace(ON_GPU, kv_dtype=torch.float8_e4m3fn))
    assert choice.name == "reference"
    assert "a cache of float8_e4m3fn needs a GPU of compute capability 8.9" in choice.passed_over[0]


def test_eight_bit_caches_on_a_cpu_run_through_the_reference_with_the_reason() -> None:
    choice = choose(replace(ON_CPU, kv_dtype=torch.int8))
    assert choice.name == "reference"
    assert choice.passed_over == ("native: it reads no cache of int8", "cpu: it reads no cache of int8")


def test_a_block_size_that_is_asked_for_is_kept_and_decides(machine: Machine) -> None:
    machine(triton="3.6.0", flash_attn=True)
    assert choose(replace(ON_GPU, block_size=16)).block_size == 16
    assert choose(replace(ON_GPU, block_size=512)).name == "flash_attn"
    choice = choose(replace(ON_GPU, block_size=48))
    assert choice.name == "reference"
    assert choice.passed_over[0] == "triton: it has blocks of 16, 32, 64, 128, 256 tokens, not 48"


def test_what_depends_on_the_batch_is_not_deterministic(machine: Machine) -> None:
    machine(flash_attn=True)
    with pytest.raises(UnsupportedAttention, match="flash_attn: its sums depend on what else is in the batch"):
        choose(replace(ON_GPU, deterministic=True))
    machine(triton="3.6.0")
    assert choose(replace(ON_GPU, deterministic=True)).name == "triton"


def test_the_libraries_are_not_even_imported_where_a_better_one_fits(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(triton="3.6.0")
    monkeypatch.setattr("leokernels.flash.obstacle_to_import", lambda *names: pytest.fail("imported"))
    choose(ON_GPU)


def test_an_override_is_taken_with_its_block_size(machine: Machine) -> None:
    assert choose(ON_CPU, "reference").name == "reference"
    machine(triton="3.6.0", flash_attn=True)
    choice = choose(ON_GPU, "flash_attn")
    assert (choice.name, choice.block_size, choice.reason) == ("flash_attn", 256, "as --attention says")


def test_an_unknown_override_is_refused_with_those_that_fit(machine: Machine) -> None:
    with pytest.raises(UnsupportedAttention, match="'fast'.*there is native or cpu or reference"):
        choose(ON_CPU, "fast")
    machine(triton="3.6.0", flash_attn=True)
    with pytest.raises(UnsupportedAttention, match="'fast'.*there is triton or flash_attn or reference"):
        choose(ON_GPU, "fast")


def test_an_override_that_does_not_fit_is_refused_with_the_reason_and_those_that_do(machine: Machine) -> None:
    with pytest.raises(UnsupportedAttention, match="runs on cuda, not on cpu.*there is native or cpu or reference"):
        choose(ON_CPU, "triton")
    with pytest.raises(UnsupportedAttention, match="no float64.*there is reference"):
        choose(Place(CPU, torch.float64, 64), "cpu")
    machine(triton="3.6.0")
    with pytest.raises(UnsupportedAttention, match="flash-attn is not installed; for cuda.*there is triton or ref"):
        choose(ON_GPU, "flash_attn")
    machine(triton="3.6.0", flash_attn=True)
    with pytest.raises(UnsupportedAttention, match="multiple of 256 tokens, not 64.*there is triton or reference"):
        choose(replace(ON_GPU, block_size=64), "flash_attn")


@pytest.mark.parametrize(
    ("restriction", "words"),
    [
        ({"devices": ("cuda",)}, "runs on cuda, not on cpu"),
        ({"dtypes": (torch.float16,)}, "no bfloat16"),
        ({"head_dims": (96, 128)}, "head sizes 96, 128, not 64"),
        ({"block_sizes": (16, 32)}, "blocks of 16, 32 tokens, not 64"),
        ({"block_multiple": 256}, "multiple of 256 tokens, not 64"),
        ({"missing": lambda: "magic is not installed"}, "magic is not installed"),
    ],
)
def test_every_restriction_of_the_table_says_what_stands_in_the_way(restriction: dict[str, Any], words: str) -> None:
    free = Implementation(name="new", function=reference.attention, reason="faster")
    assert free.obstacle(ON_CPU) is None
    assert words in (replace(free, **restriction).obstacle(ON_CPU) or "")


def test_every_implementations_own_block_size_fits_it() -> None:
    for row in TABLE:
        assert row.block_size % row.block_multiple == 0
        assert not row.block_sizes or row.block_size in row.block_sizes


def test_an_implementation_that_is_none_is_refused_at_the_call() -> None:
    with pytest.raises(UnsupportedAttention, match="there is native or cpu or triton or flash_attn or torch_varlen"):
        new_cache(1, 16, 1, 64, dtype=torch.float32, device=CPU, implementation="fast")


@pytest.mark.parametrize(("attention", "fused"), [("native", "native"), ("cpu", "torch"), ("reference", "torch")])
def test_a_cpu_runs_native_functions_over_the_native_cache_and_else_torchs(attention: str, fused: str) -> None:
    assert choose_fused(ON_CPU, attention).name == fused


@pytest.mark.parametrize(
    ("installed", "place", "words"),
    [
        ({}, ON_GPU, "triton is not installed"),
        ({"triton": "3.6.0", "capability": (7, 0)}, ON_GPU, "capability 8.0, and this one has 7.0"),
        ({"triton": "3.6.0"}, replace(ON_GPU, head_dim=80), "powers of 2, not 80"),
        (
            {"triton": "3.6.0", "capability": (8, 6)},
            replace(ON_GPU, kv_dtype=torch.float8_e4m3fn),
            "capability 8.9, and this one has 8.6",
        ),
    ],
)
def test_a_gpu_that_cannot_run_tritons_functions_says_why(
    machine: Machine, installed: dict[str, Any], place: Place, words: str
) -> None:
    machine(**installed)
    fused = choose_fused(place, "reference")
    assert fused.name == "torch"
    assert words in fused.reason


def test_a_gpu_with_triton_runs_tritons_functions(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(triton="3.6.0")
    functions = doubles.module("leokernels.triton.fused", rms_norm=1, rope_and_cache=2, silu_and_mul=3)
    monkeypatch.setitem(sys.modules, "leokernels.triton.fused", functions)
    fused = choose_fused(ON_GPU, "triton")
    assert (fused.name, fused.rms_norm, fused.rope_and_cache, fused.silu_and_mul) == ("triton", 1, 2, 3)


@pytest.mark.parametrize("module", ["leokernels", "leoserve.engine.start"])
def test_nothing_needs_triton_or_flash_attn_to_be_imported(module: str) -> None:
    code = f"import sys; sys.modules.update(triton=None, flash_attn=None); import {module}"
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True)


def test_tritons_attention_is_imported_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    function = doubles.module("leokernels.triton.attention", attention=lambda *args, **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "leokernels.triton.attention", function)
    query: Any = torch.zeros(1, 1, 64)
    nothing: Any = None
    attention(query, nothing, nothing, scale=0.5, window=3, implementation="triton")
    assert [(call["scale"], call["window"]) for call in calls] == [(0.5, 3)]

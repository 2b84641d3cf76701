"""The libraries' adapters ask for the reference's numbers, in the words of the libraries' own signatures."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from leokernels import flash, varlen
from tests.kernels import doubles
from tests.kernels.paging import CASES, Case, random_inputs, run_case

LIBRARY_CASES = [replace(case, block_size=256) for case in CASES] + [
    replace(CASES[8], block_size=512, name="blocks of 512")
]


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    library = doubles.flash_attn_module()
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    return library


@pytest.fixture
def torch_varlen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    library = doubles.module(varlen.MODULE, varlen_attn_out=doubles.varlen_attn_out)
    monkeypatch.setitem(sys.modules, varlen.MODULE, library)
    return library


def assert_the_references_numbers(case: Case, implementation: str) -> None:
    inputs = random_inputs(case, torch.float32)
    found, expected = run_case(case, inputs, implementation), run_case(case, inputs, "reference")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("case", LIBRARY_CASES, ids=lambda case: case.name)
def test_flash_attn_is_asked_for_the_references_numbers(case: Case) -> None:
    assert_the_references_numbers(case, "flash_attn")


@pytest.mark.usefixtures("torch_varlen")
@pytest.mark.parametrize("case", LIBRARY_CASES, ids=lambda case: case.name)
def test_torch_varlen_is_asked_for_the_references_numbers(case: Case) -> None:
    assert_the_references_numbers(case, "torch_varlen")


def recorded(monkeypatch: pytest.MonkeyPatch, library: ModuleType, name: str) -> list[dict[str, Any]]:
    """The calls of a library's function from now on, their arguments by name."""
    function: Callable[..., Any] = getattr(library, name)
    calls = []

    def record(*args: Any, **options: Any) -> Any:
        calls.append(inspect.signature(function).bind(*args, **options).arguments)
        return function(*args, **options)

    record.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    monkeypatch.setattr(library, name, record)
    return calls


def test_decode_rows_and_the_others_go_to_flash_attns_two_entry_points(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = recorded(monkeypatch, flash_attn, "flash_attn_with_kvcache")
    ragged = recorded(monkeypatch, flash_attn, "flash_attn_varlen_func")
    assert_the_references_numbers(Case("mixed", ((20, 1), (300, 1), (0, 13), (64, 40)), block_size=256), "flash_attn")
    assert [call["q"].shape for call in decode] == [(2, 1, 4, 64)]
    assert [call["q"].shape for call in ragged] == [(53, 4, 64)]
    assert_the_references_numbers(Case("decode", ((20, 1),), block_size=256), "flash_attn")
    assert_the_references_numbers(Case("prompt", ((20, 2),), block_size=256), "flash_attn")
    assert (len(decode), len(ragged)) == (2, 2)


def test_a_flash_attn_that_can_split_ragged_rows_is_told_not_to(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = []

    def newer(*args: Any, num_splits: int = 0, block_table: Any = None, **options: Any) -> Any:
        splits.append(num_splits)
        return doubles.flash_attn_varlen_func(*args, block_table=block_table, **options)

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", newer)
    assert_the_references_numbers(Case("prompt", ((20, 5),), block_size=256), "flash_attn")
    assert splits == [1]


def test_torch_varlen_computes_decode_rows_the_same_way_whatever_is_beside_them(
    torch_varlen: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch, torch_varlen, "varlen_attn_out")
    assert_the_references_numbers(Case("mixed", ((20, 1), (300, 1), (0, 13)), block_size=256), "torch_varlen")
    assert_the_references_numbers(Case("decode", ((20, 1), (300, 1)), block_size=256), "torch_varlen")
    assert [(call["max_q"], call["num_splits"]) for call in calls] == [(1, 1), (13, 1), (1, 1)]


def test_the_double_of_torchs_function_has_its_signature() -> None:
    real = pytest.importorskip(varlen.MODULE)
    if not hasattr(real, "varlen_attn_out"):
        pytest.skip("this torch has no varlen_attn_out")
    assert shape_of(real.varlen_attn_out) == shape_of(doubles.varlen_attn_out)
    assert varlen.missing() is None


def test_the_double_of_flash_attn_has_its_signatures() -> None:
    real = pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    for name in flash.ENTRY_POINTS:
        known = shape_of(getattr(doubles, name))
        assert [parameter for parameter in shape_of(getattr(real, name)) if parameter in known] == known


def shape_of(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_a_flash_attn_that_is_not_there_or_does_not_load_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert flash.missing() == "flash-attn is not installed"
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so:\\n undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        flash.missing() == "flash-attn is installed and does not load (flash_attn_2_cuda.so: undefined symbol: _ZN3c10)"
    )


def test_a_flash_attn_without_paged_caches_says_so(flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash.missing() is None
    monkeypatch.setattr(flash_attn, "flash_attn_with_kvcache", lambda q, k_cache, v_cache: None)
    assert "reads no paged cache" in (flash.missing() or "")
    monkeypatch.delattr(flash_attn, "flash_attn_with_kvcache")
    assert "reads no paged cache" in (flash.missing() or "")


def test_an_older_torch_says_what_it_lacks(torch_varlen: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen.missing() is None

    def without_pages(out: Any, query: Any, *, scale: Any = None, window_size: Any = (-1, -1)) -> None: ...

    monkeypatch.setattr(torch_varlen, "varlen_attn_out", without_pages)
    assert f"torch {torch.__version__} has no attention over paged caches" in (varlen.missing() or "")
    monkeypatch.delattr(torch_varlen, "varlen_attn_out")
    assert "has no attention over paged caches" in (varlen.missing() or "")
    monkeypatch.setitem(sys.modules, varlen.MODULE, None)  # as if there were no such module
    assert "has no attention over paged caches" in (varlen.missing() or "")

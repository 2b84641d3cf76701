"""Which matrix product is taken where, and what is said where a promise cannot be kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from leokernels import Place, UnsupportedProduct, choose_product
from tests.kernels.paging import CPU

ON_GPU = Place(torch.device("cuda", 0), torch.bfloat16, 128)
DETERMINISTIC = replace(ON_GPU, deterministic=True)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of today, with Triton installed."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("leokernels.product.triton_missing", lambda: None)


def test_few_rows_have_a_product_of_their_own_where_it_was_found_to_be_faster() -> None:
    from leokernels.triton.narrow import KINDS_OF_ROWS, linear

    product = choose_product(ON_GPU)
    assert (product.name, product.multiply, product.kinds_of_rows) == ("narrow", linear, KINDS_OF_ROWS)
    assert "up to 8 rows" in product.reason


@pytest.mark.parametrize(
    ("dtype", "capability", "missing"),
    [
        (torch.bfloat16, (8, 0), None),
        (torch.bfloat16, (10, 0), None),
        (torch.float32, (9, 0), None),
        (torch.bfloat16, (9, 0), "triton is not installed"),
    ],
)
def test_elsewhere_a_gpus_own_library_multiplies_unless_it_has_to_be_deterministic(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int], missing: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("leokernels.product.triton_missing", lambda: missing)
    product = choose_product(replace(ON_GPU, dtype=dtype))
    assert product.name == "torch"
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.equal(product.multiply(x, weight), F.linear(x, weight))


def test_a_cpu_is_deterministic_with_torchs() -> None:
    assert choose_product(Place(CPU, torch.float32, 64, deterministic=True)).name == "torch"


def test_a_deterministic_gpu_takes_tritons_with_the_reason() -> None:
    from leokernels.triton.matmul import linear

    product = choose_product(DETERMINISTIC)
    assert (product.name, product.multiply) == ("triton", linear)
    assert "the same bits" in product.reason
    assert product.kinds_of_rows


@pytest.mark.parametrize(
    ("place", "capability", "missing", "words"),
    [
        (DETERMINISTIC, (9, 0), "triton is not installed", "triton is not installed"),
        (DETERMINISTIC, (7, 5), None, "it needs a GPU of compute capability 8.0, and this one has 7.5"),
        (replace(DETERMINISTIC, dtype=torch.float32), (9, 0), None, "it has no float32"),
        (replace(DETERMINISTIC, device=torch.device("meta")), (9, 0), None, "it runs on cuda, not on meta"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, place: Place, capability: tuple[int, int], missing: str | None, words: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("leokernels.product.triton_missing", lambda: missing)
    with pytest.raises(UnsupportedProduct, match=words):
        choose_product(place)

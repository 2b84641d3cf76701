"""Native kernels in every variant, with some numbers of threads; beside a GPU, what is to be interpreted is skipped.

The root's conftest says where kernels are interpreted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leokernels import native

from .variants import VARIANTS, forget, use_variant

INTERPRETED = "TRITON_INTERPRET"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside a GPU, triton is a compiler unless told otherwise, and has nothing to do on CPU tensors."""
    skip = pytest.mark.skip(reason=f"triton compiles for the GPU here; {INTERPRETED}=1 runs its kernels on CPU tensors")
    for item in items:
        interprets = item.path.name.startswith("test_triton_") and item.path.name != "test_triton_compile.py"
        if item.path.is_relative_to(Path(__file__).parent) and interprets and os.environ.get(INTERPRETED) != "1":
            item.add_marker(skip)


@pytest.fixture(params=VARIANTS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each variant that was compiled and that this processor can run."""
    why = use_variant(request.param, monkeypatch)
    if why is not None:
        pytest.skip(why)
    yield request.param
    forget()


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    native.use_threads(request.param)
    yield request.param
    native.use_threads(None)

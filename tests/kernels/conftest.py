"""Beside a GPU, what is to be interpreted is skipped; the root's conftest says where kernels are interpreted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

INTERPRETED = "TRITON_INTERPRET"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside a GPU, triton is a compiler unless told otherwise, and has nothing to do on CPU tensors."""
    skip = pytest.mark.skip(reason=f"triton compiles for the GPU here; {INTERPRETED}=1 runs its kernels on CPU tensors")
    for item in items:
        interprets = item.path.name.startswith("test_triton_") and item.path.name != "test_triton_compile.py"
        if item.path.is_relative_to(Path(__file__).parent) and interprets and os.environ.get(INTERPRETED) != "1":
            item.add_marker(skip)

"""What is installed beside torch, and what it can do."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from typing import Any

MIN_TRITON = (3, 6)


def triton_missing() -> str | None:
    """Why Triton's kernels cannot run here, or None."""
    obstacle = obstacle_to_import("triton", "triton")
    if obstacle is not None:
        return obstacle
    version = str(importlib.import_module("triton").__version__)
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < MIN_TRITON:
        return f"triton {version} is installed, and at least {'.'.join(map(str, MIN_TRITON))} is needed"
    return None


def obstacle_to_import(module: str, package: str) -> str | None:
    """Why `module` of `package` cannot be imported, in one line, or None."""
    if importlib.util.find_spec(module) is None:
        return f"{package} is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that was built for another torch fails in many ways
        words = " ".join(str(error).split())
        return f"{package} is installed and does not load ({words or type(error).__name__})"
    return None


def accepts(function: Any, *parameters: str) -> bool:
    """Whether it is a function with these parameters."""
    return callable(function) and set(parameters) <= _parameters(function)


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)

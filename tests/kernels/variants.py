"""What is compiled once for each instruction set: which variants this processor runs, and how to call one."""

from __future__ import annotations

import pytest

from leokernels import native
from leokernels.native import build, loading

AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2"})
NEEDS: dict[str, frozenset[str]] = {
    "avx512pairs": AVX512 | {"avx512_bf16"},
    "avx512": AVX512,
    "avx2": frozenset({"avx2", "fma"}),
    "base": frozenset({"asimd"}),
}
VARIANTS = sorted({name for names in build.VARIANTS.values() for name in names})


def use_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """From now on this variant is called. Returns why it cannot be, or None."""
    if not NEEDS[name] <= loading.processor().flags:
        return f"this processor cannot run {name}"
    monkeypatch.setattr(loading, "variant", lambda: name)
    forget()
    return native.missing()


def forget() -> None:
    for each in (loading.missing, loading.library, loading.pool_of):
        each.cache_clear()

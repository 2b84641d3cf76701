"""The CPU's own kernels: against plain torch, the same bits for a row in any batch, in every variant that runs here."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leokernels import fused, native, new_cache
from leokernels.native import Packed, build, loading, memory
from leokernels.native.loading import Processor, variant_of

from .variants import AVX512

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


pytestmark = pytest.mark.usefixtures("library")


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(64, 64), (2304, 768), (770, 256), (31, 33), (1, 1), (128, 4098)])
def test_a_product_is_that_of_float64_up_to_one_rounding(columns: int, depth: int, dtype: torch.dtype) -> None:
    weight = drawn(columns, depth, dtype=dtype, scale=depth**-0.5)
    packed = Packed(weight)
    for rows in (0, 1, 2, 3, 4, 5, 11, 12, 13, 64, 150):
        x = drawn(rows, depth, dtype=dtype, seed=rows)
        expected = x.double() @ weight.double().T
        eps = torch.finfo(dtype).eps
        chain = 2**-24 * depth**0.5 * 8  # of one addition after the other, each rounded: a walk at random, with room
        torch.testing.assert_close(packed(x).double(), expected, rtol=eps, atol=chain)
        assert torch.equal(packed(x, wide=True), packed(x).float())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(256, 768), (130, 4100)])
def test_a_row_has_the_same_bits_in_any_product(columns: int, depth: int, dtype: torch.dtype) -> None:
    packed, x = Packed(drawn(columns, depth, dtype=dtype)), drawn(300, depth, dtype=dtype, seed=1)
    whole = packed(x)
    for begin, end in ((0, 1), (299, 300), (5, 7), (10, 13), (20, 31), (100, 112), (40, 104), (1, 290)):
        assert torch.equal(packed(x[begin:end]), whole[begin:end]), f"rows {begin} to {end}"


def test_a_product_with_what_does_not_fit_is_refused() -> None:
    packed = Packed(drawn(32, 64, dtype=torch.bfloat16))
    for x in (torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(1, 64)):
        with pytest.raises(ValueError, match="the weight takes"):
            packed(x)


def test_infinities_and_nan_stay_in_their_rows() -> None:
    weight, x = drawn(64, 64, dtype=torch.bfloat16), drawn(6, 64, dtype=torch.bfloat16, seed=1)
    clean = Packed(weight)(x)
    x[1, 3], x[4, 5] = float("nan"), float("inf")
    found = Packed(weight)(x)
    assert found[1].isnan().all()
    assert not found[4].isfinite().any()
    assert torch.equal(found[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])


def test_weights_that_the_system_has_no_memory_for_are_told_by_their_size() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no 1099511627776 MiB for weights"):
        memory.slab(2**60)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [256, 768, 100])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norms_are_torch_s(dtype: torch.dtype, hidden: int, with_residual: bool) -> None:
    x, weight = drawn(70, hidden, dtype=dtype), drawn(hidden, dtype=dtype, seed=1)
    residual = drawn(70, hidden, dtype=dtype, seed=2) if with_residual else None
    normed, summed = native.rms_norm(x, weight, 1e-5, None if residual is None else residual.clone())
    expected, expected_sum = fused.rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(summed, expected_sum)
    torch.testing.assert_close(normed, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [64, 688, 90])
def test_gates_are_torch_s(dtype: torch.dtype, inner: int) -> None:
    gate_up = drawn(50, 2 * inner, dtype=dtype, scale=4)
    gate_up[0, :4] = torch.tensor([0.0, -0.0, 300.0, -300.0])
    expected = fused.silu_and_mul(gate_up)
    torch.testing.assert_close(native.silu_and_mul(gate_up), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


COLUMNS = [1, 17, 31, 33, 511, 513, 32128]


def masks(slots: int, columns: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Random masks [slots, words] int32, and the same as flags [slots, columns]; an empty and a full one among them."""
    flags = np.random.default_rng(columns).random((slots, 32 * words)) < 0.3
    flags[0], flags[1] = False, True
    packed = np.packbits(flags, axis=1, bitorder="little").view(np.int32)
    told = np.zeros((slots, columns), dtype=bool)
    told[:, : 32 * words] = flags[:, :columns]
    return np.ascontiguousarray(packed), told


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", COLUMNS)
def test_draws_invert_the_cumulative_distribution(columns: int) -> None:
    draws = np.random.default_rng(columns)
    logits = drawn(6, columns, dtype=torch.float32, scale=3)
    logits[1, columns // 3 : columns - 1] = -float("inf")
    logits[2] = -float("inf")
    logits[2, columns // 2] = 4
    logits = logits[draws.integers(0, 6, 200)]
    temperatures = draws.choice(np.array([0.3, 1, 1.7], dtype=np.float32), 200)
    uniforms = draws.random(200)
    uniforms[:4] = [0, 0, 1 - 2**-53, 1 - 2**-53]
    _, found = native.choose(logits, temperatures, uniforms)
    for row, temperature, uniform, id in zip(logits, temperatures, uniforms, found.tolist(), strict=True):
        weights = (row.double() / float(temperature)).softmax(0).numpy()
        assert weights[id] > 0
        cumulative = weights.cumsum()
        assert cumulative[id] > uniform - 1e-5  # float32 weights: near a step either side is right
        assert cumulative[id] - weights[id] <= uniform + 1e-5


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", COLUMNS)
def test_without_a_temperature_the_largest_is_chosen_and_the_first_of_several(columns: int) -> None:
    logits = drawn(60, columns, dtype=torch.float32).mul(8).round()  # many are equal
    peaks, found = native.choose(logits, np.zeros(60), np.zeros(60))
    np.testing.assert_array_equal(found, logits.numpy().argmax(1))
    np.testing.assert_array_equal(peaks, logits.numpy().max(1))


def test_a_row_that_is_not_a_number_is_told_by_its_peak_and_disturbs_no_other() -> None:
    logits = drawn(5, 100, dtype=torch.float32)
    logits[1, 70], logits[2], logits[3, 9] = float("nan"), -float("inf"), float("inf")
    for temperature in (0, 1):
        peaks, found = native.choose(logits, np.full(5, temperature), np.full(5, 0.5))
        assert np.isnan(peaks[1])
        assert peaks[2] == -np.inf
        assert peaks[3] == np.inf
        alone = native.choose(logits[[0, 4]], np.full(2, temperature), np.full(2, 0.5))
        np.testing.assert_array_equal(found[[0, 4]], alone[1])
        assert ((found >= 0) & (found < 100)).all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("fewer", [0, 1])  # a tokenizer may have fewer ids than the network has rows
def test_a_mask_leaves_what_it_allows(columns: int, fewer: int) -> None:
    words, flags = masks(5, columns, max(1, -(-columns // 32) - fewer))
    logits, rows, slots = drawn(8, columns, dtype=torch.float32), np.array([6, 0, 3]), np.array([4, 2, 0])
    expected = logits.clone()
    for row, slot in zip(rows, slots, strict=True):
        expected[row, torch.from_numpy(~flags[slot])] = -float("inf")
    native.mask(logits, rows, slots, words)
    assert torch.equal(logits, expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_choice_under_a_mask_is_that_of_masked_logits(columns: int) -> None:
    words, flags = masks(6, columns, -(-columns // 32))
    slots = np.array([-1, 1, 2, 3, 4, 5, -1, 0] * 5)
    logits = drawn(40, columns, dtype=torch.float32, scale=2)
    masked = logits.clone()
    rows = np.flatnonzero(slots >= 0)
    native.mask(masked, rows, slots[rows], words)
    temperatures, uniforms = np.resize([0, 0.5, 1], 40), np.random.default_rng(1).random(40)
    peaks, found = native.choose(logits, temperatures, uniforms, native.RowMasks(slots, words))
    others = native.choose(masked, temperatures, uniforms)
    np.testing.assert_array_equal(peaks, others[0])
    np.testing.assert_array_equal(found, others[1])
    for row in np.flatnonzero(np.isfinite(peaks)):
        assert slots[row] < 0 or flags[slots[row], found[row]]


def test_a_choice_is_the_same_alone_and_among_others() -> None:
    logits, uniforms = drawn(40, 3000, dtype=torch.float32), np.random.default_rng(0).random(40)
    peaks, found = native.choose(logits, np.ones(40), uniforms)
    for row in (0, 7, 39):
        peak, alone = native.choose(logits[row : row + 1], np.ones(1), uniforms[row : row + 1])
        assert (peak[0], alone[0]) == (peaks[row], found[row])


def test_choosing_refuses_what_it_would_misread() -> None:
    logits, words = drawn(2, 64, dtype=torch.float32), np.zeros((1, 2), dtype=np.int32)
    with pytest.raises(ValueError, match="float32 logits"):
        native.choose(logits.double(), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="2 rows"):
        native.choose(logits, np.zeros(1), np.zeros(2))
    with pytest.raises(ValueError, match="int32"):
        native.mask(logits, np.zeros(1), np.zeros(1), words.astype(np.int64))
    with pytest.raises(ValueError, match="one of 1 "):
        native.choose(logits, np.zeros(2), np.zeros(2), native.RowMasks(np.array([0, 1]), words))


def test_exponentials_reach_into_every_corner() -> None:
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([float("inf"), -float("inf"), float("nan")])])
    gate_up = torch.cat([x, torch.ones_like(x)])[None]
    expected = fused.silu_and_mul(gate_up.double()).float()
    expected[expected.abs() < 1e-35] = 0  # where e^-x is beyond float32
    expected[0, 4002] = float("nan")  # -inf * 0, as in torch
    found = native.silu_and_mul(gate_up)
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=1e-34, equal_nan=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (8, 2, 128), (3, 1, 96)])
def test_rotations_and_cache_are_torch_s_bit_by_bit(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> None:
    qkv = drawn(40, heads + 2 * kv_heads, head_dim, dtype=dtype)
    turn = torch.rand(40, 1, 1, head_dim // 2, generator=torch.Generator().manual_seed(1)) * 6
    angles = torch.cat([turn.cos(), turn.sin()], 1)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:37]
    slots[3] = -1
    queries, caches = [], []
    for functions in (fused.NATIVE, fused.TORCH):
        cache = new_cache(4, 16, kv_heads, head_dim, dtype=dtype, device=CPU, implementation="native")
        for part in cache.tensors():
            part.fill_(7)
        queries.append(functions.rope_and_cache(qkv, angles, cache, slots, heads, kv_heads))
        caches.append(cache)
    assert torch.equal(*queries)
    for left, right in zip(caches[0].tensors(), caches[1].tensors(), strict=True):
        assert torch.equal(left, right)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=20, max_size=60), st.integers(2, 6))
def test_jobs_of_any_size_in_any_order_lose_no_task(rows: list[int], threads: int) -> None:
    """Each job has to see what the one before wrote: a task done twice, late or never would show."""
    native.use_threads(threads)
    try:
        identity = Packed(torch.eye(256))
        x = torch.arange(40 * 256).float().view(40, 256)
        for count in rows:
            y = identity(x[:count])
            assert torch.equal(y, x[:count])
            x[:count] = identity(y) + 1
    finally:
        native.use_threads(None)


class Parsers:
    """Stand for llguidance's: each allows its last token plus one, stops at 90 and cannot go on from 95."""

    def __init__(self, count: int) -> None:
        self.last = [0] * count
        self.words = np.zeros((count, 2), np.uint32)
        self._commit = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)(self.commit)
        self._mask = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Allowed))(self.mask)
        functions = (ctypes.cast(each, ctypes.c_void_p).value or 0 for each in (self._commit, self._mask))
        self.follower = native.Follower(*functions)

    def commit(self, parser: int, token: int, _told: int) -> int:
        self.last[parser - 1] = token
        return -1 if token == 95 else 0

    def mask(self, parser: int, told: Any) -> int:
        token = self.last[parser - 1]
        self.words[parser - 1] = token, token + 1
        told.contents.words, told.contents.stop = self.words[parser - 1].ctypes.data, token == 90
        return -1 if token == 96 else 0


class Allowed(ctypes.Structure):
    _fields_ = [("words", ctypes.c_void_p), ("temperature", ctypes.c_float), ("stop", ctypes.c_bool)]


@pytest.mark.usefixtures("threads")
def test_parsers_are_moved_on_beside_other_jobs_and_each_once() -> None:
    parsers, kept = Parsers(70), []
    identity, x = Packed(torch.eye(256)), torch.arange(40 * 256).float().view(40, 256)
    draw = np.random.default_rng(5)
    assert parsers.follower.ended(wait=False) == []
    for turn in range(120):
        count = int(draw.integers(0, 70))
        tokens = draw.integers(0, 97, count)
        masks = np.full((70, 2), 7, np.uint32)
        kept.append(masks)  # until nobody writes to it
        rows = [(row + 1, masks[row].ctypes.data, 8, int(token), 0) for row, token in enumerate(tokens)]
        parsers.follower.begin(np.array(rows, native.FOLLOW))
        for _ in range(turn % 4):
            assert torch.equal(identity(x), x)
        if turn % 3:  # else the next `begin` waits
            while (ended := parsers.follower.ended(wait=turn % 2 == 0)) is None:
                assert turn % 2
            assert ended == np.flatnonzero(tokens == 90).tolist()
            assert parsers.follower.ended(wait=False) == []
            assert parsers.last[:count] == tokens.tolist()
            expected = np.stack([tokens, tokens + 1], 1).astype(np.uint32)
            expected[tokens == 90], expected[tokens > 94] = 7, 0
            np.testing.assert_array_equal(masks[:count], expected)
            assert (masks[count:] == 7).all()
    parsers.follower.ended(wait=True)


@pytest.mark.usefixtures("threads")
def test_a_job_may_have_more_tasks_than_a_part_s_bits_tell() -> None:
    count = 2**20 + 3  # a part keeps its first task and its end in 20 bits each
    logits = torch.arange(count, dtype=torch.float32)[:, None]
    peaks, _ = native.choose(logits, np.zeros(count), np.zeros(count))
    np.testing.assert_array_equal(peaks, logits[:, 0].numpy())


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", AVX512 | {"avx512_bf16"}, "avx512"),
        ("AuthenticAMD", AVX512 | {"avx512_bf16"}, "avx512pairs"),
        ("AuthenticAMD", AVX512, "avx512"),
        ("GenuineIntel", {"avx2", "fma", "avx512f"}, "avx2"),
        ("", {"asimd"}, "base"),
        ("GenuineIntel", {"sse4_2"}, None),
    ],
)
def test_a_processor_gets_the_fastest_variant_that_it_runs(
    vendor: str, flags: set[str], expected: str | None, library: str
) -> None:
    assert variant_of(Processor(vendor, frozenset(flags))) == expected


def test_without_its_file_the_library_is_missing_and_says_why(
    library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "file_of", lambda name: tmp_path / name)
    native.missing.cache_clear()
    assert "not compiled" in (native.missing() or "")
    (tmp_path / library).write_bytes(b"no library")
    native.missing.cache_clear()
    assert "cannot be loaded" in (native.missing() or "")


def test_without_a_compiler_the_recipe_says_so_in_one_line(library: str, tmp_path: Path) -> None:
    program = Path(build.__file__)
    for compiler in ("no-such-compiler", "false"):
        done = subprocess.run(
            [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, env={"CXX": compiler}
        )
        assert done.returncode == 1
        assert done.stderr.startswith("leokernels.native was not built: ")
    assert not list(tmp_path.iterdir())

"""Every implementation gives the reference's numbers, over one table of cases; the reference gives torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leokernels import Place, attention, native, new_cache, write_kv
from leokernels.table import entry
from tests.kernels.paging import (
    CASES,
    CPU,
    Case,
    Inputs,
    alone,
    block_tables,
    random_inputs,
    run_case,
    step_metadata,
)

FAST = ("cpu", "native")
IDS = [case.name for case in CASES]


def skip_unless_it_fits(implementation: str, dtype: torch.dtype, head_dim: int = 64, block_size: int = 16) -> None:
    """The table says where an implementation runs, and where it does not it is not called."""
    obstacle = entry(implementation).obstacle(Place(CPU, dtype, head_dim, block_size))
    if obstacle is not None:
        pytest.skip(obstacle)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    native.use_threads(2)
    yield
    native.use_threads(None)
    torch.set_num_threads(before)


def torch_attention(case: Case, inputs: Inputs) -> Tensor:
    """The same rows by torch's attention over contiguous keys, with the mask written out."""
    pieces, begin = [], 0
    for (start, count), keys, values in zip(case.rows, inputs.keys, inputs.values, strict=True):
        mask = torch.zeros(count, start + count, dtype=torch.bool)
        for query in range(count):
            position = start + query
            first = 0 if case.window is None else max(0, position - case.window + 1)
            mask[query, first : position + 1] = True
        query = inputs.query[begin : begin + count].transpose(0, 1)[None]
        share = case.heads // case.kv_heads
        keys = keys.repeat_interleave(share, 1).transpose(0, 1)[None]
        values = values.repeat_interleave(share, 1).transpose(0, 1)[None]
        pieces.append(F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)[0].transpose(0, 1))
        begin += count
    return torch.cat(pieces)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_reference_agrees_with_torch_on_contiguous_keys(case: Case) -> None:
    inputs = random_inputs(case, torch.float32)
    torch.testing.assert_close(run_case(case, inputs, "reference"), torch_attention(case, inputs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_float32_agrees_with_the_reference(case: Case, implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.float32, case.head_dim, case.block_size)
    inputs = random_inputs(case, torch.float32)
    found, expected = run_case(case, inputs, implementation), run_case(case, inputs, "reference")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_half_precision_agrees_with_float32_within_its_rounding(
    case: Case, dtype: torch.dtype, implementation: str
) -> None:
    skip_unless_it_fits(implementation, dtype, case.head_dim, case.block_size)
    inputs = random_inputs(case, dtype)
    wide = Inputs(inputs.query.float(), [k.float() for k in inputs.keys], [v.float() for v in inputs.values])
    found = run_case(case, inputs, implementation)
    assert found.dtype is dtype
    assert relative(found.float(), run_case(case, wide, "reference")) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_keeps_the_precision_of_large_scores(implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.bfloat16)
    case = Case("sharp", tuple((90 + row, 1) for row in range(16)))
    inputs = random_inputs(case, torch.bfloat16)
    sharp = Inputs(inputs.query * 8, inputs.keys, inputs.values)
    wide = Inputs(sharp.query.float(), [k.float() for k in sharp.keys], [v.float() for v in sharp.values])
    found = run_case(case, sharp, implementation).float()
    assert relative(found, run_case(case, wide, "reference")) < torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("implementation", ["reference", *FAST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [case for case in CASES if len(case.rows) > 1], ids=lambda case: case.name)
def test_a_row_has_the_same_bits_alone_and_beside_others(case: Case, dtype: torch.dtype, implementation: str) -> None:
    skip_unless_it_fits(implementation, dtype, case.head_dim, case.block_size)
    inputs = random_inputs(case, dtype)
    together = run_case(case, inputs, implementation)
    begin = 0
    for row, (_, count) in enumerate(case.rows):
        by_itself = run_case(*alone(case, inputs, row), implementation)
        assert torch.equal(by_itself, together[begin : begin + count]), f"row {row}"
        begin += count


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_row_has_the_same_bits_in_a_full_batch(dtype: torch.dtype, implementation: str) -> None:
    skip_unless_it_fits(implementation, dtype)
    lengths = [(start, 1) for start in (159, 3, 700, *range(100, 160))]
    case = Case("64 rows", tuple(lengths), heads=12, kv_heads=12, block_size=32)
    inputs = random_inputs(case, dtype)
    together = run_case(case, inputs, implementation)
    for row in (0, 1, 2, 30, 62):
        assert torch.equal(run_case(*alone(case, inputs, row), implementation)[0], together[row]), f"row {row}"


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 130])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (8, 2, 128)])
def test_a_prompt_has_the_same_bits_however_it_is_cut_into_chunks(
    dtype: torch.dtype, window: int | None, heads: int, kv_heads: int, head_dim: int, implementation: str
) -> None:
    skip_unless_it_fits(implementation, dtype, head_dim, 32)
    whole = Case("prompt", ((0, 900),), heads, kv_heads, head_dim, 32, window)
    inputs = random_inputs(whole, dtype)
    expected = run_case(whole, inputs, implementation)
    for start, stop in ((0, 100), (100, 228), (228, 230), (300, 512), (490, 700), (700, 900)):
        part = Inputs(inputs.query[start:stop], [inputs.keys[0][:stop]], [inputs.values[0][:stop]])
        found = run_case(replace(whole, rows=((start, stop - start),)), part, implementation)
        assert torch.equal(found, expected[start:stop]), f"tokens {start} to {stop}"


shapes = st.sampled_from([(1, 1, 64), (4, 4, 64), (4, 2, 64), (6, 2, 32), (8, 1, 128)])
decode_rows = st.lists(st.tuples(st.integers(0, 150), st.just(1)), max_size=6)
prefill_rows = st.lists(st.tuples(st.integers(0, 150), st.integers(2, 70)), max_size=3)
windows = st.none() | st.integers(1, 160)


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    decode_rows,
    prefill_rows,
    st.integers(1, 70) | st.sampled_from([16, 32, 64, 128]),
    windows,
    st.integers(0, 2**31),
)
def test_any_step_agrees_with_the_reference(
    shape: tuple[int, int, int],
    decode: list[tuple[int, int]],
    prefill: list[tuple[int, int]],
    block_size: int,
    window: int | None,
    seed: int,
) -> None:
    rows = tuple(decode + prefill) or ((0, 1),)
    case = Case("random", rows, *shape, block_size, window, seed=seed)
    inputs = random_inputs(case, torch.float32)
    expected = run_case(case, inputs, "reference")
    for implementation in FAST:
        if entry(implementation).obstacle(Place(CPU, torch.float32, case.head_dim, case.block_size)) is None:
            torch.testing.assert_close(run_case(case, inputs, implementation), expected, atol=3e-5, rtol=2e-4)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_sequences_that_share_a_prefix_read_the_same_blocks(implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.float32)
    case = Case("shared", ((40, 1), (45, 1), (32, 9)))
    inputs = random_inputs(case, torch.float32)
    keys = [torch.cat([inputs.keys[0][:32], k[32:]]) for k in inputs.keys]
    values = [torch.cat([inputs.values[0][:32], v[32:]]) for v in inputs.values]
    expected = run_case(case, Inputs(inputs.query, keys, values), "reference")
    tables = [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    cache = new_cache(5, 16, 4, 64, dtype=torch.float32, device=CPU, implementation=implementation)
    slots = step_metadata([(0, len(k)) for k in keys], tables, 16).slot_mapping
    write_kv(torch.cat(keys), torch.cat(values), cache, slots)
    metadata = step_metadata(case.rows, tables, 16)
    found = attention(inputs.query, cache, metadata, scale=1 / 8, implementation=implementation)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_a_copied_block_holds_the_same_keys_and_values(implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.bfloat16)
    cache = new_cache(4, 16, 2, 64, dtype=torch.bfloat16, device=CPU, implementation=implementation)
    cache.keys.zero_()
    cache.values.zero_()
    key, value = torch.randint(-99, 100, (2, 16, 2, 64)).bfloat16()  # exact in float16 as well, where keys may lie
    write_kv(key, value, cache, torch.arange(16, 32))
    cache.copy_blocks(torch.tensor([1]), torch.tensor([3]))
    assert torch.equal(cache.keys[3].bfloat16(), key)
    assert torch.equal(cache.values[3].bfloat16(), value)
    assert not cache.keys[0].any()
    assert not cache.values[2].any()


@pytest.mark.parametrize("implementation", FAST)
def test_one_metadata_serves_many_layers_and_both_windows(implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.float32)
    case = Case("layers", ((40, 1), (5, 20)))
    tables, num_blocks = block_tables([41, 25], 16, seed=1)
    metadata = step_metadata(case.rows, tables, 16)
    for seed in range(2):
        inputs = random_inputs(replace(case, seed=seed), torch.float32)
        for window in (None, 7):
            cache = new_cache(num_blocks, 16, 4, 64, dtype=torch.float32, device=CPU, implementation=implementation)
            slots = step_metadata([(0, 41), (0, 25)], tables, 16).slot_mapping
            write_kv(torch.cat(inputs.keys), torch.cat(inputs.values), cache, slots)
            expected = run_case(replace(case, window=window), inputs, "reference")
            found = attention(inputs.query, cache, metadata, scale=1 / 8, window=window, implementation=implementation)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", FAST)
def test_keys_that_do_not_lie_transposed_are_refused_by_name(implementation: str) -> None:
    skip_unless_it_fits(implementation, torch.float32)
    case = Case("plain", ((20, 1),))
    cache = new_cache(2, 16, 4, 64, dtype=torch.float32, device=CPU, implementation="reference")
    query = random_inputs(case, torch.float32).query
    with pytest.raises(ValueError, match="new_cache"):
        attention(query, cache, step_metadata(case.rows, [[0, 1]], 16), scale=1 / 8, implementation=implementation)

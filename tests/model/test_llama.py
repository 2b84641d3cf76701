"""The network gives transformers' logits, and a token's logits are the same bits whatever runs beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from leokernels import native
from leokernels.fused import NATIVE, TORCH, Fused, triton_functions
from leokernels.installed import triton_missing
from leokernels.product import Multiply, torch_linear
from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.weights import load_weights
from tests.checkpoints import VOCAB_ROWS, Format, Rope, write_checkpoint
from tests.kernels.paging import block_tables, poison, step_metadata

CPU = torch.device("cpu")
LAYOUTS: tuple[tuple[Format, Rope], ...] = (
    ("safetensors", "old"),
    ("safetensors-sharded", "new"),
    ("bin", "parameters"),
    ("bin-sharded", "old"),
    ("safetensors", "none"),
)
BLOCK = 16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and triton_missing() is None


class Paged:
    """A loaded network and a small paged cache, for sequences computed in steps of any composition."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        lengths: Sequence[int],
        attention: str = "cpu",
        fused: Fused = TORCH,
        multiply: Multiply = torch_linear,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        config = ModelConfig.from_folder(folder)
        self.model = Llama(
            config, dtype=dtype, device=CPU, attention=attention, fused=fused, multiply=multiply, kv_dtype=kv_dtype
        )
        load_weights(self.model, folder, config, progress=None)
        self.model.prepare()
        self.tables, num_blocks = block_tables(lengths, BLOCK, seed=3)
        self.cache = self.model.new_cache(num_blocks, BLOCK)
        for layer in self.cache:
            poison(layer)

    @torch.inference_mode()
    def step(self, rows: Sequence[tuple[int, int, Tensor]]) -> list[Tensor]:
        """Logits [count, vocab] of each row, given as (sequence, start, tokens); rows of one token first."""
        counts = [len(tokens) for _, _, tokens in rows]
        metadata = step_metadata(
            [(start, count) for (_, start, _), count in zip(rows, counts, strict=True)],
            [self.tables[sequence] for sequence, _, _ in rows],
            BLOCK,
        )
        positions = torch.cat([torch.arange(start, start + len(tokens)) for _, start, tokens in rows])
        tokens = torch.cat([tokens for _, _, tokens in rows])
        hidden = self.model.forward(tokens, positions, self.cache, metadata)
        return list(self.model.logits(hidden).split(counts))


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCAB_ROWS, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def expected_logits(folder: Path, tokens: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    return [model(prompt[None]).logits[0].float() for prompt in tokens]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("fmt", "rope"), LAYOUTS)
@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
def test_logits_agree_with_transformers(tmp_path: Path, shape: str, fmt: Format, rope: Rope) -> None:
    folder = write_checkpoint(tmp_path, shape, fmt=fmt, rope=rope)
    tokens = prompts(70, 33, 1)
    paged = Paged(folder, dtype=torch.float32, lengths=[70, 33, 1])
    found = paged.step([(2, 0, tokens[2]), (0, 0, tokens[0]), (1, 0, tokens[1])])
    expected = expected_logits(folder, tokens)
    for row, number in enumerate((2, 0, 1)):
        assert relative(found[row], expected[number]) < 1e-5
        torch.testing.assert_close(found[row], expected[number], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_states_of_wanted_tokens_are_those_of_all_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    paged = Paged(write_checkpoint(tmp_path, "7b"), dtype=dtype, lengths=[30])
    (tokens,) = prompts(30)
    metadata = step_metadata([(0, 30)], paged.tables, BLOCK)
    arguments = (tokens, torch.arange(30), paged.cache, metadata)
    everything = paged.model.forward(*arguments)
    for wanted in ([29], [0, 7, 29], list(range(30))):
        found = paged.model.forward(*arguments, torch.tensor(wanted))
        assert torch.equal(found, everything[wanted])


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
@torch.inference_mode()
def test_one_native_call_has_the_bits_of_its_kernels(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    folder = write_checkpoint(tmp_path, shape, dtype=dtype)
    a, b = prompts(90, 50)
    together, apart = (Paged(folder, dtype=dtype, lengths=[90, 50], attention="native", fused=NATIVE) for _ in range(2))
    if together.model.native is None:
        pytest.skip("this processor's products are oneDNN's")
    apart.model.native = None
    assert torch.equal(mixed_steps(together, a, b), mixed_steps(apart, a, b))
    metadata = step_metadata([(35, 1), (11, 9)], together.tables, BLOCK)
    arguments = torch.cat([a[35:36], b[11:20]]), torch.tensor([35, *range(11, 20)])
    for wanted in (None, torch.tensor([0, 9]), torch.tensor([9])):
        found, expected = (
            paged.model.forward(*arguments, paged.cache, metadata, wanted) for paged in (together, apart)
        )
        assert torch.equal(found, expected)
    none = together.model.forward(*arguments, together.cache, metadata, torch.empty(0, dtype=torch.int64))
    assert none.shape == (0, together.model.native.hidden)
    for mine, theirs in zip(together.cache, apart.cache, strict=True):
        for page in range(len(mine.keys)):  # what was written, and nothing else
            assert torch.equal(mine.keys[page].nan_to_num(7), theirs.keys[page].nan_to_num(7))
            assert torch.equal(mine.values[page].nan_to_num(7), theirs.values[page].nan_to_num(7))


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
@pytest.mark.parametrize(("token", "position"), [(VOCAB_ROWS, 0), (-1, 0), (3, 1 << 20)])
@torch.inference_mode()
def test_what_the_network_does_not_have_is_an_error_natively_too(tmp_path: Path, token: int, position: int) -> None:
    folder = write_checkpoint(tmp_path, "7b")
    paged = Paged(folder, dtype=torch.float32, lengths=[30], attention="native", fused=NATIVE)
    metadata = step_metadata([(0, 1)], paged.tables, BLOCK)
    with pytest.raises(IndexError):
        paged.model.forward(torch.tensor([token]), torch.tensor([position]), paged.cache, metadata)


@pytest.mark.parametrize("attention", ["native", "cpu", "reference"])
@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
def test_chunks_decode_steps_and_mixed_batches_agree_with_transformers(
    tmp_path: Path, shape: str, attention: str
) -> None:
    if attention == "native" and native.missing() is not None:
        pytest.skip(str(native.missing()))
    folder = write_checkpoint(tmp_path, shape)
    a, b = tokens = prompts(90, 50)
    fused = NATIVE if attention == "native" else TORCH
    paged = Paged(folder, dtype=torch.float32, lengths=[90, 50], attention=attention, fused=fused)
    parts_a = paged.step([(0, 0, a[:37])])
    mixed = paged.step([(0, 37, a[37:80]), (1, 0, b[:20])])
    tail = paged.step([(0, 80, a[80:81]), (1, 20, b[20:])])
    parts_a += [mixed[0], tail[0]]
    parts_a += [paged.step([(0, position, a[position : position + 1])])[0] for position in range(81, 90)]
    expected = expected_logits(folder, tokens)
    torch.testing.assert_close(torch.cat(parts_a), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([mixed[1], tail[1]]), expected[1], atol=1e-4, rtol=1e-4)


def mixed_steps(paged: Paged, a: Tensor, b: Tensor) -> Tensor:
    """Logits of two prompts, computed in chunks, together, and token by token."""
    first = paged.step([(0, 0, a[:17])])
    mixed = paged.step([(0, 17, a[17:33]), (1, 0, b[:9])])
    tail = paged.step([(0, 33, a[33:34]), (1, 9, b[9:10])])
    rest = paged.step([(0, 34, a[34:35]), (1, 10, b[10:])])
    return torch.cat([first[0], mixed[0], tail[0], rest[0], mixed[1], tail[1], rest[1]])


@pytest.mark.skipif(not INTERPRETED, reason="Triton is not installed, or does not interpret its kernels")
@pytest.mark.parametrize(("shape", "kv_dtype"), [("7b", None), ("70b", None), ("mistral", None), ("70b", torch.int8)])
def test_tritons_kernels_give_the_same_logits(tmp_path: Path, shape: str, kv_dtype: torch.dtype | None) -> None:
    folder = write_checkpoint(tmp_path, shape)
    a, b = prompts(35, 14)
    plain = Paged(folder, dtype=torch.float32, lengths=[35, 14], attention="reference", kv_dtype=kv_dtype)
    triton = Paged(
        folder,
        dtype=torch.float32,
        lengths=[35, 14],
        attention="triton",
        fused=triton_functions("for this test"),
        kv_dtype=kv_dtype,
    )
    found, expected = mixed_steps(triton, a, b), mixed_steps(plain, a, b)
    assert relative(found, expected) < (1e-5 if kv_dtype is None else 2e-3)


@pytest.mark.parametrize(("kv_dtype", "bound"), [(torch.int8, 0.02), (torch.float8_e4m3fn, 0.08)])
def test_an_eight_bit_cache_stays_near_a_plain_one(tmp_path: Path, kv_dtype: torch.dtype, bound: float) -> None:
    folder = write_checkpoint(tmp_path, "70b")
    a, b = prompts(35, 14)
    plain, small = (
        Paged(folder, dtype=torch.float32, lengths=[35, 14], attention="reference", kv_dtype=stored)
        for stored in (None, kv_dtype)
    )
    assert 0 < relative(mixed_steps(small, a, b), mixed_steps(plain, a, b)) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_transformers_own(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_checkpoint(tmp_path, "70b", dtype=dtype)
    tokens = prompts(80)
    found = Paged(folder, dtype=dtype, lengths=[80]).step([(0, 0, tokens[0])])[0]
    exact = expected_logits(folder, tokens)[0]
    theirs = expected_logits(folder, tokens, dtype)[0]
    assert found.dtype is torch.float32
    assert relative(found, exact) < 1.25 * relative(theirs, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
def test_a_token_has_the_same_bits_alone_and_in_a_batch(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    lengths = [40, 70, 23, 35, 36, 37, 38, 39]
    folder = write_checkpoint(tmp_path, shape, dtype=dtype)
    tokens = prompts(*lengths)
    single, batch = (Paged(folder, dtype=dtype, lengths=lengths) for _ in range(2))
    expected = []
    for number, prompt in enumerate(tokens):
        single.step([(number, 0, prompt[:20])])
        expected.append(torch.cat([single.step([(number, at, prompt[at : at + 1])])[0] for at in range(20, 23)]))
    batch.step([(number, 0, prompt[:9]) for number, prompt in enumerate(tokens)])
    batch.step([(number, 9, prompt[9:20]) for number, prompt in enumerate(tokens)])
    steps = [batch.step([(n, at, prompt[at : at + 1]) for n, prompt in enumerate(tokens)]) for at in range(20, 23)]
    for number, row in enumerate(expected):
        assert torch.equal(torch.cat([step[number] for step in steps]), row), f"sequence {number}"


def test_every_linear_layer_and_the_head_take_the_product_they_are_given(tmp_path: Path) -> None:
    used: list[Tensor] = []

    def multiply(x: Tensor, weight: Tensor, /) -> Tensor:
        used.append(weight)
        return torch_linear(x, weight)

    folder = write_checkpoint(tmp_path, "70b", dtype=torch.float16)  # which no CPU packs
    paged = Paged(folder, dtype=torch.float16, lengths=[5], multiply=multiply)
    paged.step([(0, 0, prompts(5)[0])])
    expected = [
        layer.weight for each in paged.model.layers for layer in (each.qkv, each.output, each.gate_up, each.down)
    ]
    expected.append(paged.model.head.weight)
    pointers = [weight.data_ptr() for weight in expected if weight is not None]
    assert [weight.data_ptr() for weight in used] == pointers
    used.clear()
    paged.model.try_products((1, 65))
    assert {weight.shape for weight in used} == {weight.shape for weight in expected if weight is not None}


def test_weights_can_be_packed_only_once_they_are_loaded(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "7b")
    paged = Paged(folder, dtype=torch.float32, lengths=[4])
    if paged.model.head.weight is None:
        with pytest.raises(RuntimeError, match="packed already"):
            paged.model.destinations()

"""Stage 2: every kernel against float32, and each row alone against the same row among 64, bit for bit.

An error is ‖found − expected‖ / ‖expected‖. Below a few thousandths it is the rounding of bfloat16, and NaN never
passes. What should have the same bits is compared as bits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gpustages.paged import Heads, Problem, written
from gpustages.place import Place
from gpustages.shapes import SEVEN, TINY
from gpustages.stages import Measurement, brief
from gpustages.warming import warm
from leokernels import KVCache, fused, new_cache
from leokernels.table import dtype_name
from leokernels.triton import fused as ours
from leokernels.triton import matmul, narrow
from leokernels.triton.logits import process_logits
from leokernels.triton.logprobs import gather_logprobs
from leokernels.triton.sampling import sample, update_counts
from leokernels.triton.state import SamplingState, SlotSettings

LARGEST_ERROR = 1e-2
ROWS = 64  # of a batch
TINY_ROWS = 4
DRAWS = 4096


def check(place: Place) -> Iterator[Measurement]:
    """A check that raises is wrong, and the next one is made."""
    yield {"name": "compiling", "note": f"{warm(place, _calls, seconds=place.seconds_left / 2):.0f} s"}
    for name, made in all_checks(place):
        try:
            yield {"name": name, **made()}
        except Exception as error:
            traceback.print_exc()
            if any(fault in str(error) for fault in ("CUDA error", "Triton Error [CUDA]")):
                raise  # the GPU is in disarray: nothing after it would be true
            yield {"name": name, "ok": False, "error": brief(error, 300)}


def _calls(place: Place) -> Iterator[Callable[[], object]]:
    return (made for _, made in all_checks(place))


def all_checks(place: Place) -> Iterator[tuple[str, Callable[[], Measurement]]]:
    """Each with its name. Nothing is computed yet."""
    for of, kv_dtype, size in _caches(place):
        title = f"attention, {of}, {dtype_name(kv_dtype)} in blocks of {size}"
        yield title, partial(attention, place, of, kv_dtype, size)
    yield "norm with residual", partial(norm, place)
    for kv_dtype in (place.dtype, *place.eight_bit):
        title = f"rotary positions and cache of {dtype_name(kv_dtype)}"
        yield title, partial(rope, place, kv_dtype)
    yield "gate", partial(gate, place)
    for name, (columns, width) in (TINY if place.tiny else SEVEN).products().items():
        yield f"deterministic product, {name} {columns}×{width}", partial(product, place, columns, width)
        yield f"product for few rows, {name} {columns}×{width}", partial(few_rows, place, columns, width)
    yield "greedy tokens, log-probabilities and ranks", partial(greedy, place)
    yield "frequencies of draws", partial(frequencies, place)
    yield "bans, biases and penalties", partial(edits, place)
    yield "a draw alone and among others", partial(draws_alone, place)


def rows_of(place: Place) -> int:
    return TINY_ROWS if place.tiny else ROWS


def _caches(place: Place) -> Iterator[tuple[Heads, torch.dtype, int]]:
    """7B's attention over every kind of cache and block; of the other networks', what differs."""
    if place.tiny:
        yield Heads(1, 1, 64), place.dtype, 16
        yield Heads(2, 1, 64, window=24), torch.int8, 16
        return
    seven, seventy, mistral, small = Heads(32, 32, 128), Heads(64, 8, 128), Heads(32, 8, 128, 1000), Heads(8, 4, 64)
    for of in (seven, seventy, mistral, small):
        yield of, place.dtype, 64
    for kv_dtype in place.eight_bit:
        for of in (seven, seventy, small):
            yield of, kv_dtype, 64
    yield seven, place.dtype, 16
    yield seven, place.dtype, 256
    yield seventy, place.dtype, 16


def attention(place: Place, of: Heads, kv_dtype: torch.dtype, block_size: int) -> Measurement:
    """A mixed step against the reference; then decode rows and prompts alone against themselves among others."""
    problem = mixed_step(place, of, kv_dtype, block_size)
    found = problem.attend("triton", out=torch.full_like(problem.query, float("nan")))
    result = compare(found, problem.wide().attend("reference"))
    differ = rows_that_differ(problem, found)
    return result | {"ok": bool(result["ok"]) and not differ, "rows that differ alone": differ}


def mixed_step(place: Place, of: Heads, kv_dtype: torch.dtype, block_size: int, seed: int = 0) -> Problem:
    """64 decode rows of every length, and prompts with and without a cached prefix."""
    if place.tiny:
        rows = [(17, 1), (260, 1), (30, 9)]
    else:
        rows = [(97 * number % 2500, 1) for number in range(ROWS - 2)] + [(8190, 1), (255, 1)]
        rows += [(0, 300), (1000, 129), (4096, 512), (63, 2), (0, 1025)]
    return written(
        rows, of, block_size=block_size, dtype=place.dtype, kv_dtype=kv_dtype, device=place.device, seed=seed
    )


def rows_that_differ(problem: Problem, together: Tensor) -> list[int]:
    """Rows whose results alone have other bits than `together`."""
    differ, begin = [], 0
    for number, (_, count) in enumerate(problem.rows):
        if not torch.equal(problem.row(number).attend("triton"), together[begin : begin + count]):
            differ.append(number)
        begin += count
    return differ


def norm(place: Place) -> Measurement:
    rows = rows_of(place)
    hidden = 96 if place.tiny else 4096
    x, residual = (random(place, rows, hidden) for _ in range(2))
    weight = random(place, hidden)
    expected, total = fused.rms_norm(x.float(), weight.float(), 1e-5, residual.float())
    found, summed = ours.rms_norm(x.clone(), weight, 1e-5, residual.clone())
    alone, _ = ours.rms_norm(x[-1:].clone(), weight, 1e-5, residual[-1:].clone())
    return both(compare(found, expected), compare(summed, total)) | same_bits(torch.equal(alone[0], found[-1]))


def rope(place: Place, kv_dtype: torch.dtype) -> Measurement:
    """Queries, and what is in the cache afterwards, against the functions in torch; padding writes nothing."""
    rows = rows_of(place)
    heads, kv_heads, head_dim = (2, 1, 64) if place.tiny else (32, 32, 128)
    qkv = random(place, rows, heads + 2 * kv_heads, head_dim)
    angle = torch.rand(rows, 1, head_dim // 2, device=place.device) * 6
    angles = torch.stack([angle.cos(), angle.sin()], 1)
    slots = torch.randperm(rows, device=place.device)
    slots[1] = -1
    found_cache, expected_cache = (_empty_cache(place, kv_heads, head_dim, kv_dtype) for _ in range(2))
    found = ours.rope_and_cache(qkv, angles, found_cache, slots, heads, kv_heads)
    expected = fused.rope_and_cache(qkv, angles, expected_cache, slots, heads, kv_heads)
    result = compare(found, expected.float())
    for mine, theirs in zip(_contents(found_cache), _contents(expected_cache), strict=True):
        result = both(result, compare(mine, theirs))
    alone = ours.rope_and_cache(qkv[-1:], angles[-1:], found_cache, slots[-1:], heads, kv_heads)
    return result | same_bits(torch.equal(alone[0], found[-1]))


def _empty_cache(place: Place, kv_heads: int, head_dim: int, kv_dtype: torch.dtype) -> KVCache:
    rows = rows_of(place)
    cache = new_cache(
        -(-rows // 16), 16, kv_heads, head_dim, dtype=kv_dtype, device=place.device, implementation="triton"
    )
    for part in cache.tensors():
        part.zero_()
    return cache


def _contents(cache: KVCache) -> list[Tensor]:
    """Keys and values as they are read."""
    pairs = ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    return [part.float() if scales is None else part.float() * scales[..., None] for part, scales in pairs]


def gate(place: Place) -> Measurement:
    rows = rows_of(place)
    gate_up = random(place, rows, 2 * (96 if place.tiny else 11008))
    found = ours.silu_and_mul(gate_up)
    alone = ours.silu_and_mul(gate_up[-1:])
    return compare(found, fused.silu_and_mul(gate_up.float())) | same_bits(torch.equal(alone[0], found[-1]))


def product(place: Place, columns: int, width: int) -> Measurement:
    """Products of so many rows that each of its ways is taken, against float32; their rows against the largest's."""
    counts = (1, 17, 40) if place.tiny else (1, 64, 65, 256, 1024)
    x = random(place, counts[-1], columns)
    weight = random(place, width, columns) * columns**-0.5
    whole = matmul.linear(x, weight)
    result = compare(whole, x.float() @ weight.float().T)
    for count in counts:
        if not torch.equal(matmul.linear(x[-count:], weight), whole[-count:]):
            return result | {"ok": False, "alone": f"{count} rows have other bits"}
    return result


def few_rows(place: Place, columns: int, width: int) -> Measurement:
    """Early and not, against float32."""
    x = random(place, narrow.MOST_ROWS, columns)
    weight = random(place, width, columns) * columns**-0.5
    expected = x.float() @ weight.float().T
    several = compare(narrow.narrow_linear(x, weight), expected)
    return both(several, compare(narrow.narrow_linear(x[:1], weight), expected[:1]))


def greedy(place: Place) -> Measurement:
    """Greedy tokens are the largest logits; log-probabilities are log-softmax in float64 over ids with a token."""
    rows = rows_of(place)
    vocab, live, state = _sampling(place, SlotSettings(temperature=0.0))
    raw = torch.randn(rows, vocab, device=place.device) * 3
    slots = torch.arange(rows, dtype=torch.int32, device=place.device)
    asked = torch.full((rows,), 5, dtype=torch.int32, device=place.device)
    chosen = sample(process_logits(raw, slots, state), slots, slots.long(), state)
    update_counts(chosen, slots, state)
    found = gather_logprobs(raw, chosen.tokens, asked, state.dead, 5)
    exact = F.log_softmax(raw[:, :live].double(), -1)
    best = exact.topk(5, -1)
    right = torch.equal(chosen.tokens, raw[:, :live].argmax(-1)) and bool((found.rank == 1).all())
    right &= torch.equal(found.top_ids.long(), best.indices) and torch.equal(state.last_token[:rows], chosen.tokens)
    error = (found.top_logprobs.double() - best.values).abs().max().item()
    return {"ok": right and error < 1e-4 and int(chosen.failed.count_nonzero()) == 0, "largest error": error}


def frequencies(place: Place) -> Measurement:
    """How often each of a few tokens is drawn, against its probability; truncated tokens are never drawn."""
    rows = rows_of(place)
    vocab, _, state = _sampling(place, SlotSettings(temperature=0.7, top_k=6, top_p=0.95, seed=5))
    logits = torch.full((rows, vocab), -30.0, device=place.device)
    logits[:, 10:18] = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5], device=place.device)
    slots = torch.arange(rows, dtype=torch.int32, device=place.device)
    counts = torch.zeros(vocab, device=place.device)
    draws = rows * (2 if place.tiny else DRAWS // rows)
    for turn in range(draws // rows):
        positions = torch.arange(rows, device=place.device) + turn * rows
        chosen = sample(process_logits(logits.clone(), slots, state), slots, positions, state)
        counts.index_add_(0, chosen.tokens, torch.ones(rows, device=place.device))
    weights = (torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5], dtype=torch.float64) / 0.7).softmax(0)
    kept = int((weights.cumsum(0) - weights < 0.95).sum())
    expected = torch.zeros(vocab, dtype=torch.float64)
    expected[10 : 10 + kept] = weights[:kept] / weights[:kept].sum()
    deviation = (counts.double().cpu() / draws - expected).abs().max().item()
    others = int(counts.sum() - counts[10 : 10 + kept].sum())
    right = others == 0 and deviation < 4 * 0.5 / draws**0.5  # four standard deviations at the most
    return {"ok": right, "largest deviation": deviation, "others drawn": others}


def edits(place: Place) -> Measurement:
    """Against the same arithmetic in torch."""
    rows = rows_of(place)
    settings = SlotSettings(repetition=1.3, frequency=0.4, presence=0.2, bias={3: 2.0, 9: -4.0}, banned=(4, 40))
    vocab, live, state = _sampling(place, settings, prompt=[1, 2, 3], generated=[2, 7, 7])
    raw = torch.randn(rows, vocab, device=place.device) * 3
    slots = torch.arange(rows, dtype=torch.int32, device=place.device)
    expected = raw.clone()
    expected[:, [3, 9]] += torch.tensor([2.0, -4.0], device=place.device)
    for token, count in ((1, 0), (2, 1), (3, 0), (7, 2)):
        x = expected[:, token]
        expected[:, token] = torch.where(x > 0, x / 1.3, x * 1.3) - count * 0.4 - (0.2 if count else 0.0)
    found = process_logits(raw, slots, state)
    gone = torch.zeros(vocab, dtype=torch.bool, device=place.device)
    gone[live:] = gone[4] = gone[40] = True
    right = bool(((found == -float("inf")) == gone).all())
    result = compare(found.masked_fill(gone, 0), expected.masked_fill(gone, 0))
    return result | {"ok": bool(result["ok"]) and right, "banned are gone": right}


def draws_alone(place: Place) -> Measurement:
    """The token of a row with a seed, alone and among 64 others."""
    rows = rows_of(place)
    vocab, _, state = _sampling(place, SlotSettings(temperature=0.9, top_p=0.9, min_p=0.01, seed=77))
    raw = torch.randn(rows, vocab, device=place.device) * 2
    slots = torch.arange(rows, dtype=torch.int32, device=place.device)
    positions = torch.arange(rows, device=place.device) * 11
    together = sample(process_logits(raw, slots, state), slots, positions, state).tokens
    alone = []
    for row in range(0, rows, 7):
        own = slice(row, row + 1)
        alone.append(sample(process_logits(raw[own], slots[own], state), slots[own], positions[own], state).tokens)
    return {"ok": True} | same_bits(torch.equal(torch.cat(alone), together[::7]))


def _sampling(
    place: Place, settings: SlotSettings, prompt: list[int] | None = None, generated: list[int] | None = None
) -> tuple[int, int, SamplingState]:
    """Rows of the network, ids with a token, and a state whose every slot has these settings."""
    rows = rows_of(place)
    vocab, live = (512, 447) if place.tiny else (32128, 32007)
    state = SamplingState.empty(rows, vocab, range(live, vocab), place.device)
    for slot in range(rows):
        state.set_slot(slot, settings, prompt or [], generated or [])
    return vocab, live, state


def random(place: Place, *shape: int) -> Tensor:
    return torch.randn(shape, device=place.device).to(place.dtype)


def compare(found: Tensor, expected: Tensor) -> Measurement:
    """The largest relative error of a row: over all rows, one with a long context would weigh nothing. NaN is wrong."""
    wrong = (found.double() - expected.double()).flatten(1).norm(dim=1)
    typical = expected.double().flatten(1).norm(dim=1)
    error = (wrong / typical.clamp_min(1e-3 * typical.max().item() + 1e-30)).max().item()
    return {"ok": error < LARGEST_ERROR, "error": error}


def both(left: Measurement, right: Measurement) -> Measurement:
    return {"ok": left["ok"] and right["ok"], "error": max(left["error"], right["error"])}


def same_bits(same: bool) -> Measurement:
    """To be merged after an error: nothing to add while the bits are the same."""
    return {} if same else {"ok": False, "alone": "other bits"}

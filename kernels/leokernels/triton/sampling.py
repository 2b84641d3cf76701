"""From edited logits to tokens, on the device, and without waiting for the host.

A step calls, in this order: process_logits (bans, biases, penalties), `sample`, update_counts, and gather_logprobs for
the rows that want log-probabilities. Every launch depends on the number of rows alone, nothing is read back, and the
chosen tokens go into the table of last tokens, where the next step finds its input: so all of it can be captured into
a CUDA graph, in which rows of slot -1 pad the batch.

A draw is a race (the "Gumbel-max trick", Gumbel, 1954; Maddison, Tarlow & Minka, "A* sampling", 2014): each kept token
i with weight w_i = exp((x_i - max) / temperature) draws an exponential time E_i of mean 1, and the largest w_i / E_i
wins, with probability w_i / sum(w). That is the maximum of log w_i + Gumbel noise without two logarithms, and no sum is
needed. The times come from Philox keyed by (seed, choice, position, token id), so a row's token depends on its logits
and its settings alone, and truncating differently or adding a bias leaves the other tokens' noise as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton.jit import jit, kernel, launch_options
from leokernels.triton.logits import process_logits
from leokernels.triton.logprobs import Logprobs, gather_logprobs
from leokernels.triton.philox import exponential, noise_words
from leokernels.triton.state import (
    CHOICE,
    EDITS,
    GREEDY_BELOW,
    INTEGERS,
    MIN_P,
    MISSING,
    NUMBERS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingState,
    SlotSettings,
    pack_bits,
)
from leokernels.triton.truncation import is_kept, truncate

__all__ = [
    "CHOSEN",
    "NOTHING_LEFT",
    "NOT_FINITE",
    "Logprobs",
    "Sampled",
    "SamplingState",
    "SlotSettings",
    "gather_logprobs",
    "pack_bits",
    "process_logits",
    "sample",
    "update_counts",
]

TILE, WARPS = 4096, 16  # ids at a time, 8 a thread
ROWS = 128  # of update_counts, a program
# No logit of a working model comes near it, and divided by the smallest temperature it is still a float32.
TOO_LARGE = tl.constexpr(1e30)

# Values of Sampled.failed.
CHOSEN, NOT_FINITE, NOTHING_LEFT = 0, 1, 2
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_NOTHING_LEFT = tl.constexpr(NOTHING_LEFT)


class Sampled(NamedTuple):
    """What was chosen for each of R rows; the tokens are in `SamplingState.last_token`, too."""

    tokens: Tensor  # [R] int64; of a row that failed, or pads the batch, a valid id without meaning
    failed: Tensor  # [R] int32: CHOSEN, NOT_FINITE or NOTHING_LEFT


@kernel(varying=("any_id",), unaligned=("slots", "positions"))
def sample_kernel(
    logits: tl.tensor,
    slots: tl.tensor,
    positions: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    last_token: tl.tensor,
    tokens: tl.tensor,
    failed: tl.tensor,
    any_id: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One row. Grid (R,). logits [R, VOCAB] float32, overwritten by weights; the rest as in `sample` and `state`.

    Reads the row once for its maximum; a greedy row is done then. Others: once more to turn logits into weights, 8 to
    15 times for top_k and again for top_p (see `truncation`), and once for the race, in which tiles without a kept
    token are only looked at. 4 VOCAB bytes each; 128 KB for 32,000 ids come from memory once and from the first-level
    cache then. The noise costs about 25 integer operations an id of the tiles that take part.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    token = any_id.to(tl.int32)
    reason = tl.full([], 0, tl.int32)
    if slot >= 0:
        line = logits + row * VOCAB
        peak, best = _largest(line, VOCAB, TILE)
        edits = tl.load(integers + slot * INTEGERS + EDITS)
        if tl.abs(peak) < TOO_LARGE:
            token = best
            temperature = tl.load(numbers + slot * NUMBERS + TEMPERATURE).to(tl.float32)
            if temperature >= GREEDY_BELOW:
                _weigh(line, peak, temperature, VOCAB, TILE)
                tl.debug_barrier()  # weights that one thread wrote are read by another
                position = tl.load(positions + row).to(tl.int64)
                weights = line.to(tl.pointer_type(tl.int32), bitcast=True)
                token = _draw(weights, numbers + slot * NUMBERS, integers + slot * INTEGERS, position, VOCAB, TILE)
        else:
            reason = tl.where((peak == -float("inf")) & (edits != 0), _NOTHING_LEFT, _NOT_FINITE)
        tl.store(last_token + slot, token.to(tl.int64))
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(failed + row, reason)


@jit
def _largest(line: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """The largest logit of the row, and the lowest id that has it. What is no number counts as inf."""
    best = tl.full([TILE], -float("inf"), tl.float32)
    best_id = tl.full([TILE], 0, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        x = tl.load(line + ids, mask=ids < VOCAB, other=-float("inf"))
        x = tl.where(x == x, x, float("inf"))
        best_id = tl.where(x > best, ids, best_id)
        best = tl.maximum(best, x)
    peak = tl.max(best, 0)
    return peak, tl.min(tl.where(best == peak, best_id, VOCAB), 0)


@jit
def _weigh(line: tl.tensor, peak: tl.tensor, temperature: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr) -> None:
    """Logits to weights, in place: how likely a token is, relative to the most likely one."""
    divisor = tl.zeros([TILE], tl.float32) + temperature
    top = tl.div_rn(tl.zeros([TILE], tl.float32) + peak, divisor)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        x = tl.load(line + ids, mask=ids < VOCAB, other=0.0)
        tl.store(line + ids, tl.exp(tl.div_rn(x, divisor) - top), mask=ids < VOCAB)


@jit
def _draw(
    line: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    position: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Truncate the row of weights, whose bits are at `line`, as its slot says, and let the kept race: who wins."""
    seed, choice = tl.load(integers + SEED), tl.load(integers + CHOICE)
    top_p, min_p = tl.load(numbers + TOP_P), tl.load(numbers + MIN_P)
    threshold, last = truncate(line, tl.load(integers + TOP_K).to(tl.int32), top_p, min_p, VOCAB, TILE)
    best = tl.full([TILE], -1.0, tl.float32)
    best_id = tl.full([TILE], 0, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        bits = tl.load(line + ids, mask=ids < VOCAB, other=0)
        kept = is_kept(bits, ids, threshold, last)
        if tl.max(kept.to(tl.int32), 0) > 0:
            time = exponential(noise_words(seed, choice, position, start, TILE))
            score = tl.where(kept, bits.to(tl.float32, bitcast=True) / time, -1.0)
            best_id = tl.where(score > best, ids, best_id)
            best = tl.maximum(best, score)
    peak = tl.max(best, 0)
    return tl.min(tl.where(best == peak, best_id, VOCAB), 0)


def sample(logits: Tensor, slots: Tensor, positions: Tensor, state: SamplingState) -> Sampled:
    """Choose a token for each row of [R, V] contiguous float32 logits, edited by process_logits and overwritten here.

    `slots` [R] int32, each at most once, -1 for rows that pad the batch; `positions` [R] int64, where in its sequence
    each new token will stand. Rows are independent of each other to the bit.
    """
    rows, vocab = logits.shape
    device = logits.device
    chosen = Sampled(
        torch.empty(rows, dtype=torch.int64, device=device), torch.empty(rows, dtype=torch.int32, device=device)
    )
    if rows:
        tile = min(TILE, max(4, triton.next_power_of_2(vocab)))
        sample_kernel[(rows,)](
            logits,
            slots,
            positions,
            state.numbers,
            state.integers,
            state.last_token,
            *chosen,
            state.any_id,
            vocab,
            tile,
            **launch_options(warps=min(WARPS, max(1, tile // 256)), stages=1),
        )
    return chosen


@kernel(varying=("rows",), unaligned=("tokens", "failed", "slots"))
def update_counts_kernel(
    tokens: tl.tensor,
    failed: tl.tensor,
    slots: tl.tensor,
    integers: tl.tensor,
    history: tl.tensor,
    rows: tl.tensor,
    VOCAB: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """ROWS rows. Grid (ceil(rows / ROWS),). Moves about 44 bytes a row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    slot = tl.load(slots + row, mask=inside, other=-1).to(tl.int64)
    noted = (slot >= 0) & (tl.load(failed + row, mask=inside, other=1) == 0)
    token = tl.load(tokens + row, mask=noted, other=0)
    place = history + slot * VOCAB + token
    tl.store(place, tl.load(place, mask=noted, other=0) + 2, mask=noted)
    missing = integers + slot * INTEGERS + MISSING
    tl.store(missing, tl.maximum(tl.load(missing, mask=noted, other=0) - 1, 0), mask=noted)


def update_counts(chosen: Sampled, slots: Tensor, state: SamplingState) -> None:
    """Take note of what `sample` chose: for penalties, and for min_tokens. Rows that failed leave no trace."""
    rows = slots.shape[0]
    if rows:
        update_counts_kernel[(triton.cdiv(rows, ROWS),)](
            *chosen,
            slots,
            state.integers,
            state.history,
            rows,
            state.vocab,
            ROWS,
            **launch_options(warps=4, stages=1),
        )

"""What a request changes in its logits before a token is chosen: bans, biases and penalties, on the device.

In vLLM's order: ids without a token, allowed and banned ids, min_tokens, logit_bias, repetition penalty (positive
logits divided by it, others multiplied: Keskar et al., "CTRL", 2019), then OpenAI's frequency and presence penalties.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton.jit import jit, kernel, launch_options
from leokernels.triton.state import (
    BANS,
    BIAS,
    EDITS,
    FREQUENCY,
    INTEGERS,
    MISSING,
    NUMBERS,
    PENALTIES,
    PRESENCE,
    REPETITION,
    STOPS,
    SamplingState,
)

TILE = 1024  # ids


@jit
def bit_of(words: tl.tensor, ids: tl.tensor, VOCAB: tl.constexpr) -> tl.tensor:
    """Whether the bits of these ids are set in the bitmask [ceil(VOCAB / 32)] int32 at `words`."""
    return ((tl.load(words + (ids >> 5), mask=ids < VOCAB, other=0) >> (ids & 31)) & 1) != 0


@kernel(unaligned=("slots",))
def process_logits_kernel(
    logits: tl.tensor,
    out: tl.tensor,
    slots: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    banned: tl.tensor,
    stops: tl.tensor,
    bias: tl.tensor,
    history: tl.tensor,
    dead: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """TILE ids of one row. Grid (rows, tiles). logits and out [rows, VOCAB], the rest as in `state`.

    Moves E + 4 bytes an id (E of a logit as it comes), and 1/8, 4 and 4 more where there are bans, biases, penalties.
    Each number is computed as on a CPU, rounding by rounding: launched without fusing products and sums.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = ids < VOCAB
        words: tl.constexpr = (VOCAB + 31) // 32
        edits = tl.load(integers + slot * INTEGERS + EDITS)
        gone = bit_of(dead, ids, VOCAB)
        if (edits & BANS) != 0:
            gone |= bit_of(banned + slot * words, ids, VOCAB)
        if ((edits & STOPS) != 0) & (tl.load(integers + slot * INTEGERS + MISSING) > 0):
            gone |= bit_of(stops + slot * words, ids, VOCAB)
        x = tl.load(logits + row * VOCAB + ids, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(gone, -float("inf"), x)
        if (edits & BIAS) != 0:
            x += tl.load(bias + slot * VOCAB + ids, mask=inside, other=0.0)
        if (edits & PENALTIES) != 0:
            past = tl.load(history + slot * VOCAB + ids, mask=inside, other=0)
            x = _penalize(x, past, numbers + slot * NUMBERS)
        tl.store(out + row * VOCAB + ids, x, mask=inside)


@jit
def _penalize(x: tl.tensor, past: tl.tensor, numbers: tl.tensor) -> tl.tensor:
    """Logits of ids that were generated `past // 2` times, and are in the prompt where `past` is odd."""
    repetition = tl.full(x.shape, 0, tl.float32) + tl.load(numbers + REPETITION).to(tl.float32)
    frequency = tl.load(numbers + FREQUENCY).to(tl.float32)
    presence = tl.load(numbers + PRESENCE).to(tl.float32)
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    count = (past >> 1).to(tl.float32)
    return tl.where(past > 0, repeated, x) - (count * frequency + tl.where(count > 0, presence, 0.0))


def process_logits(logits: Tensor, slots: Tensor, state: SamplingState, out: Tensor | None = None) -> Tensor:
    """Edit each row of [R, V] contiguous logits as its slot asks: [R, V] float32, into `out` or a new tensor.

    `logits` may be of any float dtype and may be `out`, if float32; apart from it they remain as they are, for
    gather_logprobs. `slots` [R] int32: a row of slot -1 pads the batch and is left alone. Temperature is `sample`'s.
    """
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device) if out is None else out
    if rows:
        process_logits_kernel[(rows, triton.cdiv(vocab, TILE))](
            logits,
            out,
            slots,
            state.numbers,
            state.integers,
            state.banned,
            state.stops,
            state.bias,
            state.history,
            state.dead,
            vocab,
            TILE,
            **launch_options(warps=4, stages=1) | {"enable_fp_fusion": False},
        )
    return out

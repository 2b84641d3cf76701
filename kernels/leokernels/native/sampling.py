"""Choosing tokens: masks, the largest logit, a draw."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels.native.loading import library, pool

_CHOICE = struct.Struct("@10P3q")  # LeoChoice of leonative.h


def mask(logits: Tensor, rows: NDArray[np.int64], slots: NDArray[np.int64], words: NDArray[np.int32]) -> None:
    """Set to -inf what may not come next, in `rows` [S] of logits [R, V] float32, in place.

    `words` [slots, W]: id i of the row is allowed if bit `i % 32` of word `i // 32` of its row of `slots` [S] is set;
    ids past the last word are not. Raises ValueError for logits or words of another kind.
    """
    _check_logits(logits)
    _check_words(words)
    rows, slots = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(slots, dtype=np.int64)
    places = (rows.ctypes.data, slots.ctypes.data, len(rows))
    library().mask(pool(), logits.data_ptr(), logits.shape[1], *places, words.ctypes.data, words.shape[1])


def _check_logits(logits: Tensor) -> None:
    if logits.dtype is not torch.float32 or not logits.is_contiguous() or logits.device.type != "cpu":
        raise ValueError("native sampling takes float32 logits on a CPU, without gaps")


def _check_words(words: NDArray[np.int32]) -> None:
    if words.dtype != np.int32 or not words.flags.c_contiguous:
        raise ValueError("native masks are int32, without gaps")


class Limits(NamedTuple):
    """What draws are limited to, row by row; each [R]."""

    top_k: NDArray[np.int64]  # from 1 on; the vocabulary's size, or more, is no limit
    top_p: NDArray[np.float64]  # 1 is no limit
    min_p: NDArray[np.float64]  # up to 1; 0 is no limit


class RowMasks:
    """What the rows of a step are allowed, kept from step to step: neither array may be another meanwhile."""

    def __init__(self, places: NDArray[np.int64], words: NDArray[np.int32]) -> None:
        """`places` [R]: the row of a row's `words` [slots, W], as in `mask`, or -1. Raises ValueError for others."""
        _check_words(words)
        places = np.ascontiguousarray(places, dtype=np.int64)
        if places.max(initial=-1) >= len(words):
            raise ValueError(f"each of {len(places)} rows takes one of {len(words)} masks, or none")
        self.rows, self.size = len(places), words.shape[1]
        self.addresses = places.ctypes.data, words.ctypes.data
        self._kept = places, words


def choose(
    logits: Tensor,
    temperatures: NDArray[np.float32],
    uniforms: NDArray[np.float64],
    masks: RowMasks | None = None,
    limits: Limits | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest of each row of logits [R, V] float32, NaN where one is, and the id that is chosen; both [R].

    Where the temperature [R] is 0, the lowest id of the largest logit. Else a draw: softmax at the temperature, and the
    first id whose cumulative weight, in the order of ids, exceeds uniform * total; one of weight 0 is never drawn.
    Of a row with limits, min_p keeps what is at least min_p times as likely as the most likely, then top_k the k most
    likely, then top_p the fewest that have at least top_p of the mass that is left by then, and always one; the larger
    logit first, and among equal ones the lower id.

    Without a meaning where the largest is not finite. Raises ValueError for arrays of another kind.
    """
    _check_logits(logits)
    rows, columns = logits.shape
    temperatures = np.ascontiguousarray(temperatures, dtype=np.float32)
    uniforms = np.ascontiguousarray(uniforms, dtype=np.float64)
    if not len(temperatures) == len(uniforms) == rows:
        raise ValueError(f"{rows} rows take as many temperatures and uniforms")
    slots, words, size = 0, 0, 0
    if masks is not None:
        if masks.rows != rows:
            raise ValueError(f"{rows} rows take as many masks")
        (slots, words), size = masks.addresses, masks.size
    top_k, top_p, min_p = 0, 0, 0
    if limits is not None:
        first = np.ascontiguousarray(limits.top_k, dtype=np.int64)
        shares = np.ascontiguousarray(limits.top_p, dtype=np.float64), np.ascontiguousarray(limits.min_p, np.float64)
        if not len(first) == len(shares[0]) == len(shares[1]) == rows or first.min(initial=1) < 1:
            raise ValueError(f"{rows} rows take as many limits, and a top_k of 1 or more")
        top_k, top_p, min_p = first.ctypes.data, shares[0].ctypes.data, shares[1].ctypes.data
    peaks, ids = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.int64)
    given = (logits.data_ptr(), temperatures.ctypes.data, uniforms.ctypes.data, top_k, top_p, min_p, slots, words)
    job = _CHOICE.pack(*given, peaks.ctypes.data, ids.ctypes.data, rows, columns, size)
    library().choose(pool(), job)
    return peaks, ids

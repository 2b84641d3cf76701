"""The CPU's own kernels, in C++: the matrix product, attention, what lies between the products, and sampling.

The library is compiled when the package is built (build.py), for each instruction set apart; which one is loaded is
decided by the processor (loading.py). Its functions share a pool of threads, as many as torch has unless `use_threads`
says otherwise. One thread at a time may call them.

A row's bits depend on nothing but the row: neither on what else is in the batch nor on how many threads there are.
"""

from __future__ import annotations

from leokernels.native.following import FOLLOW, Follower, Speller
from leokernels.native.layer import Packed, attention, rms_norm, rope_and_cache, silu_and_mul
from leokernels.native.loading import KINDS, has_matrix_units, missing, use_threads
from leokernels.native.network import LayerWeights, Network
from leokernels.native.sampling import Limits, RowMasks, choose, mask

HEAD_DIMS = tuple(range(32, 257, 32))
BLOCK_MULTIPLE = 16

__all__ = [
    "BLOCK_MULTIPLE",
    "FOLLOW",
    "HEAD_DIMS",
    "KINDS",
    "Follower",
    "LayerWeights",
    "Limits",
    "Network",
    "Packed",
    "RowMasks",
    "Speller",
    "attention",
    "choose",
    "has_matrix_units",
    "mask",
    "missing",
    "rms_norm",
    "rope_and_cache",
    "silu_and_mul",
    "use_threads",
]

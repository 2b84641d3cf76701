"""The attention contract: ragged queries over paged keys and values, with explicit metadata.

Row `r` of a step has `query_lens[r]` query tokens, the last of the `context_lens[r]` tokens of its sequence. Query `i`
of the row is at position `context_lens[r] - query_lens[r] + i` and sees the keys at positions `j` up to its own, of
which a sliding window leaves the last `window` (the query's own among them). Key `j` of the row is in slot
`j % block_size` of block `block_table[r, j // block_size]`. Slots that no query sees may hold anything, NaN too, and
nothing of it gets through.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class UnsupportedAttention(Exception):
    """No implementation fits, or not the one that was asked for; the message is one line that says what would."""


@dataclass(slots=True)
class AttentionMetadata:
    """What one step asks of attention, the same for every layer. R rows, T query tokens.

    Tensors are on the device of the queries; `query_lens` and `context_lens` are the same numbers on the host.
    """

    num_decode: int  # the first num_decode rows have one query token each
    query_start: Tensor  # [R + 1] int32, where each row's tokens begin among the T
    context_len: Tensor  # [R] int32, keys that the row's last query sees without a window
    block_table: Tensor  # [R, max_blocks] int32; entries past a row's context are not read
    slot_mapping: Tensor  # [T] int64, block * block_size + offset: where each token's key and value go
    query_lens: list[int]
    context_lens: list[int]
    plans: dict[Hashable, object] = field(default_factory=dict)  # derived from it, for all layers


class AttentionFunction(Protocol):
    """One implementation. `query` [T, heads, head_dim]; `k_cache`, `v_cache` [blocks, block_size, kv_heads, head_dim].

    Head `h` reads KV head `h // (heads // kv_heads)`. Writes every row of `out` [T, heads, head_dim].
    """

    def __call__(
        self,
        query: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None: ...

"""The attention contract: ragged queries over paged keys and values, with explicit metadata.

Row `r` of a step has `query_lens[r]` query tokens, the last of the `context_lens[r]` tokens of its sequence. Query `i`
of the row is at position `context_lens[r] - query_lens[r] + i` and sees the keys at positions `j` up to its own, of
which a sliding window leaves the last `window` (the query's own among them). Key `j` of the row is in slot
`j % block_size` of block `block_table[r, j // block_size]`. Slots that no query sees may hold anything, NaN too, and
nothing of it gets through. A cache of 8 bits has a scale for each token and KV head.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class UnsupportedAttention(Exception):
    """No implementation fits, or not the one that was asked for; the message is one line that says what would."""


@dataclass(slots=True)
class KVCache:
    """One layer's keys and values, in blocks. The strides of a tensor are its implementation's affair."""

    keys: Tensor  # [num_blocks, block_size, kv_heads, head_dim]
    values: Tensor  # the same
    key_scales: Tensor | None = None  # [num_blocks, block_size, kv_heads] float32 of 8-bit caches: key = stored * scale
    value_scales: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All there are; the first axis of each is the block."""
        return [part for part in (self.keys, self.values, self.key_scales, self.value_scales) if part is not None]

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Block `sources[i]` to block `targets[i]`; both [n] int64."""
        for part in map(indexable, self.tensors()):
            part[targets] = part[sources]


def indexable(pages: Tensor) -> Tensor:
    """The same memory, its elements of 8 bits as uint8: on a GPU, torch indexes no float8 in every version."""
    return pages.view(torch.uint8) if pages.itemsize == 1 else pages


@dataclass(slots=True)
class AttentionMetadata:
    """What one step asks of attention, the same for every layer. R rows, T query tokens.

    Tensors are on the device of the queries; `query_lens` and `context_lens` are the same numbers on the host. What is
    captured into a CUDA graph depends on `num_decode`, `max_query` and `max_context` only, and is replayed with other
    tensors: there a row that pads the batch has a context of 0.
    """

    num_decode: int  # the first num_decode rows have one query token each
    query_start: Tensor  # [R + 1] int32, where each row's tokens begin among the T
    context_len: Tensor  # [R] int32, keys that the row's last query sees without a window
    block_table: Tensor  # [R, max_blocks] int32; entries past a row's context are not read
    slot_mapping: Tensor  # [T] int64, block * block_size + offset: where each token's key and value go
    query_lens: list[int]
    context_lens: list[int]
    max_query: int  # no row has more query tokens
    max_context: int  # no row has more keys
    plans: dict[Hashable, object] = field(default_factory=dict)  # derived from it, for all layers


class AttentionFunction(Protocol):
    """One implementation. `query` [T, heads, head_dim]; `cache` already holds this step's keys and values.

    Head `h` reads KV head `h // (heads // kv_heads)`. Writes every row of `out` [T, heads, head_dim].
    """

    def __call__(
        self,
        query: Tensor,
        cache: KVCache,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None: ...

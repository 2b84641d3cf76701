"""Attention on a CPU in torch alone: it walks the block table, and reads each key and value once.

Decode rows. A bag of embeddings is a weighted sum of table rows, taken from wherever they lie, in the order of their
indices, in float32: exactly what a walk through paged values needs. The values of a block are such rows as they are,
[kv_heads * block_size, head_dim], weighted by probabilities. For the scores the keys lie transposed within their block,
[kv_heads * head_dim, block_size], weighted by the query: a bag of head_dim rows is the scores of one block. Nothing is
copied, each bag is summed by one thread, and nothing of it depends on other rows.

Prefill rows. torch's fused attention, over the row's context gathered into a contiguous piece, in tiles of queries that
begin and end at fixed positions and see a fixed number of keys, padding included. So a token's sums are the same
however its prompt was cut into chunks, and most of what the causal mask hides is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache

TILE = 128  # positions; measured: the least work on the triangle above the diagonal that is not many small calls
QUERY_SPLIT = 32  # queries that torch's fused CPU attention takes at a time
GROUP_INDICES = 2_000_000  # of one bag call: bounds the weights made for it
KEPT_INDICES = 64_000_000  # of a step: beyond, they are made anew in every layer


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of cached keys: float16 for bfloat16, because the scores come out in it, and eight bits are few for an exponent.

    Every bfloat16 between 2**-14 and 65504 in size is exact in float16.
    """
    return torch.float16 if dtype is torch.bfloat16 else dtype


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """See contract.AttentionFunction. The keys are laid out as new_cache does."""
    if cache.keys.stride(1) != 1 and cache.keys.shape[1] > 1:
        raise ValueError("the cpu attention reads keys that lie transposed in their blocks: allocate them by new_cache")
    plan = _plan(query, cache, metadata, window)
    for rows in plan.decode:
        _decode(query, cache, rows, scale, out)
    for row in plan.prefill:
        _prefill(query, cache, row, scale, out)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The numbers that turn a block table into indices of table rows."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    window: int | None

    def first_key(self, position: int) -> int:
        """The position of the first key that the query at `position` sees."""
        return 0 if self.window is None else max(0, position + 1 - self.window)


@dataclass(frozen=True, slots=True)
class _Indices:
    keys: Tensor  # [n * heads * blocks * head_dim] rows of the keys as [-1, block_size]
    key_bags: Tensor  # [n * heads * blocks] where each bag begins
    values: Tensor  # [n * heads * blocks * block_size] rows of the values as [-1, head_dim]
    value_bags: Tensor  # [n * heads]
    unseen: Tensor  # [n, 1, blocks * block_size] bool


@dataclass(slots=True)
class _DecodeRows:
    """Decode rows of about the same length: `blocks` each, of which the last ones may be padding."""

    layout: _Layout
    rows: Tensor  # [n] int64
    table: Tensor  # [n, blocks] int32; padding repeats the row's first block
    first: Tensor  # [n, 1] int32, position of the first block's first key
    context: Tensor  # [n, 1] int32
    keep: bool
    kept: _Indices | None = None

    def indices(self) -> _Indices:
        if self.kept is not None:
            return self.kept
        made = self._make()
        if self.keep:
            self.kept = made
        return made

    def _make(self) -> _Indices:
        at = self.layout
        count, blocks = self.table.shape
        kv_head = torch.arange(at.heads, dtype=torch.int32) // (at.heads // at.kv_heads)
        key_row = (self.table[:, None] * at.kv_heads + kv_head[:, None]) * at.head_dim
        keys = key_row[..., None] + torch.arange(at.head_dim, dtype=torch.int32)
        slot = torch.arange(blocks * at.block_size, dtype=torch.int32)
        position = self.first + slot
        unseen = position >= self.context
        if at.window is not None:
            unseen |= position < self.context - at.window
        slots = self.table.repeat_interleave(at.block_size, 1) * (at.kv_heads * at.block_size) + slot % at.block_size
        seen_first = (~unseen).int().argmax(1, keepdim=True)
        slots = torch.where(unseen, slots.gather(1, seen_first), slots)  # unseen: some seen value, of weight zero
        values = slots[:, None] + kv_head[:, None] * at.block_size
        bags = count * at.heads
        return _Indices(
            keys=keys.flatten(),
            key_bags=torch.arange(0, bags * blocks * at.head_dim, at.head_dim, dtype=torch.int32),
            values=values.flatten(),
            value_bags=torch.arange(0, values.numel(), blocks * at.block_size, dtype=torch.int32),
            unseen=unseen[:, None],
        )


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries of one row between two multiples of TILE, and the keys from one multiple of TILE to another."""

    begin: int  # of its tokens among all
    count: int
    first: int  # of its keys among the row's gathered ones
    stop: int
    mask: Tensor  # [padded queries, stop - first]: 0 or -inf, of the query's dtype


@dataclass(frozen=True, slots=True)
class _PrefillRow:
    blocks: Tensor  # [n] int64, those with keys that it sees
    unseen: int  # keys at their beginning that a window hides from all queries
    keys: int  # in them, up to the last query
    tiles: list[_Tile]


@dataclass(frozen=True, slots=True)
class _Plan:
    decode: list[_DecodeRows]
    prefill: list[_PrefillRow]


def _plan(query: Tensor, cache: KVCache, metadata: AttentionMetadata, window: int | None) -> _Plan:
    """What the step's metadata mean for this layout, worked out once for all layers."""
    _, block_size, kv_heads, head_dim = cache.keys.shape
    layout = _Layout(query.shape[1], kv_heads, head_dim, block_size, window)
    key = ("cpu", layout, query.dtype)
    plan = metadata.plans.get(key)
    if not isinstance(plan, _Plan):
        plan = _Plan(_decode_plan(metadata, layout), _prefill_plan(metadata, layout, query.dtype))
        metadata.plans[key] = plan
    return plan


def _decode_plan(metadata: AttentionMetadata, layout: _Layout) -> list[_DecodeRows]:
    contexts = metadata.context_lens[: metadata.num_decode]
    firsts = [layout.first_key(context - 1) // layout.block_size for context in contexts]
    by_blocks: dict[int, list[int]] = {}
    for row, first in enumerate(firsts):
        needed = -(-metadata.context_lens[row] // layout.block_size) - first
        by_blocks.setdefault(_rounded(needed), []).append(row)
    total = sum(blocks * len(rows) for blocks, rows in by_blocks.items())
    per_block = layout.heads * (layout.head_dim + layout.block_size)
    keep = total * per_block <= KEPT_INDICES
    groups = []
    for blocks, rows in sorted(by_blocks.items()):
        size = max(1, GROUP_INDICES // (blocks * per_block))
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            groups.append(_decode_rows(metadata, layout, part, [firsts[row] for row in part], blocks, keep))
    return groups


def _decode_rows(
    metadata: AttentionMetadata, layout: _Layout, rows: list[int], firsts: list[int], blocks: int, keep: bool
) -> _DecodeRows:
    index = torch.tensor(rows)
    context = metadata.context_len[index][:, None]
    first = torch.tensor(firsts, dtype=torch.int32)[:, None]
    number = first + torch.arange(blocks, dtype=torch.int32)
    number = torch.where(number * layout.block_size < context, number, first)
    table = metadata.block_table[index].gather(1, number.long())
    return _DecodeRows(layout, index, table, first * layout.block_size, context, keep)


def _rounded(blocks: int) -> int:
    """Up to the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …: rows of similar length go together."""
    power = 1 << (blocks - 1).bit_length()
    return power * 3 // 4 if blocks <= power * 3 // 4 else power


def _decode(query: Tensor, cache: KVCache, group: _DecodeRows, scale: float, out: Tensor) -> None:
    at, index = group.layout, group.indices()
    count, blocks = group.table.shape
    keys = cache.keys.permute(0, 2, 3, 1).view(-1, at.block_size)
    values = cache.values.permute(0, 2, 1, 3).view(-1, at.head_dim)
    weights = (query[group.rows] * scale).to(keys.dtype)[:, :, None].expand(-1, -1, blocks, -1)
    scores = torch.embedding_bag(keys, index.keys, index.key_bags, False, 0, False, weights.reshape(-1))[0].view(
        count, at.heads, blocks * at.block_size
    )
    scores.masked_fill_(index.unseen, float("-inf"))
    shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    mixed = torch.embedding_bag(values, index.values, index.value_bags, False, 0, False, shares.view(-1))[0]
    out[group.rows] = mixed.view(count, at.heads, at.head_dim).to(out.dtype)


def _prefill_plan(metadata: AttentionMetadata, layout: _Layout, dtype: torch.dtype) -> list[_PrefillRow]:
    rows = []
    begin = metadata.num_decode
    for row in range(metadata.num_decode, len(metadata.query_lens)):
        count, context = metadata.query_lens[row], metadata.context_lens[row]
        start = context - count
        first_block = layout.first_key(start // TILE * TILE) // TILE * TILE // layout.block_size
        base = first_block * layout.block_size
        blocks = metadata.block_table[row, first_block : -(-context // layout.block_size)].long()
        cuts = [start, *range(start // TILE * TILE + TILE, context, TILE), context]
        tiles = [_tile(begin - start, low, high, base, layout.window, dtype) for low, high in pairwise(cuts)]
        rows.append(_PrefillRow(blocks, max(0, layout.first_key(start) - base), context - base, tiles))
        begin += count
    return rows


def _tile(shift: int, low: int, high: int, base: int, window: int | None, dtype: torch.dtype) -> _Tile:
    """The queries at positions `low` to `high`; `shift` takes a position to its token, `base` is the first key's."""
    tile = low // TILE * TILE
    first = 0 if window is None else max(0, tile + 1 - window) // TILE * TILE
    query = torch.arange(low, low + _up(high - low, QUERY_SPLIT))[:, None]
    key = torch.arange(first, tile + TILE)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
    return _Tile(low + shift, high - low, first - base, tile + TILE - base, mask)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _prefill(query: Tensor, cache: KVCache, row: _PrefillRow, scale: float, out: Tensor) -> None:
    heads, head_dim = query.shape[1:]
    keys, values = _gather(cache.keys, row, query.dtype), _gather(cache.values, row, query.dtype)
    for tile in row.tiles:
        queries = query.new_zeros(tile.mask.shape[0], heads, head_dim)
        queries[: tile.count] = query[tile.begin : tile.begin + tile.count]
        mixed = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None, :, tile.first : tile.stop],
            values[None, :, tile.first : tile.stop],
            attn_mask=tile.mask,
            scale=scale,
            enable_gqa=heads != cache.keys.shape[2],
        )
        out[tile.begin : tile.begin + tile.count] = mixed[0, :, : tile.count].transpose(0, 1)


def _gather(pages: Tensor, row: _PrefillRow, dtype: torch.dtype) -> Tensor:
    """A row's keys or values as [kv_heads, positions, head_dim], zero wherever no query looks."""
    _, block_size, kv_heads, head_dim = pages.shape
    used = len(row.blocks)
    gathered = torch.empty(kv_heads, max(used * block_size, row.tiles[-1].stop), head_dim, dtype=dtype)
    by_head = gathered[:, : used * block_size].view(kv_heads, used, block_size, head_dim)
    by_head.copy_(pages.transpose(1, 2)[row.blocks].transpose(0, 1))
    gathered[:, : row.unseen] = 0
    gathered[:, row.keys :] = 0
    return gathered

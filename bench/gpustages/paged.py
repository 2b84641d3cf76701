"""Steps over paged caches on the device: the same for checks, for measurements and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leokernels import AttentionMetadata, KVCache, attention, new_cache, write_kv

PAST_THE_END = 2**31 - 1  # in block tables: reading there would be out of bounds


@dataclass(frozen=True, slots=True)
class Heads:
    """A network's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None

    def __str__(self) -> str:
        window = f", window {self.window}" if self.window else ""
        return f"{self.heads}/{self.kv_heads} heads of {self.head_dim}{window}"


@dataclass(slots=True)
class Problem:
    """A step of attention: rows of (tokens already cached, query tokens), those of one token first."""

    rows: list[tuple[int, int]]
    of: Heads
    query: Tensor  # [T, heads, head_dim]
    caches: list[KVCache]  # one a layer; all have the same tables
    metadata: AttentionMetadata

    def attend(self, implementation: str, *, layer: int = 0, out: Tensor | None = None) -> Tensor:
        """[T, heads, head_dim]"""
        return attention(
            self.query,
            self.caches[layer],
            self.metadata,
            scale=self.of.head_dim**-0.5,
            window=self.of.window,
            out=out,
            implementation=implementation,
        )

    def wide(self) -> Problem:
        """The same with queries in float32, for the reference; it reads the same cache."""
        return replace(self, query=self.query.float(), metadata=replace(self.metadata, plans={}))

    def row(self, number: int) -> Problem:
        """One row of it alone, over the same cache."""
        begin = sum(count for _, count in self.rows[:number])
        start, count = self.rows[number]
        metadata = _metadata([(start, count)], self.metadata.block_table[number : number + 1].clone(), self.block_size)
        return replace(self, rows=[(start, count)], query=self.query[begin : begin + count], metadata=metadata)

    @property
    def block_size(self) -> int:
        return self.caches[0].keys.shape[1]

    @property
    def seen_keys(self) -> int:
        """Of all rows together, keys that some query of the row sees."""
        window = self.of.window
        return sum(start + count if window is None else min(start, window - 1) + count for start, count in self.rows)

    @property
    def bytes_read(self) -> int:
        """Of keys and values (and their scales), each once; and of queries and results."""
        cache = self.caches[0]
        scales = 4 if cache.key_scales is not None else 0
        key = self.of.head_dim * cache.keys.element_size() + scales
        return 2 * self.seen_keys * self.of.kv_heads * key + 2 * self.query.nbytes

    @property
    def operations(self) -> int:
        """Of both products, over the pairs of queries and keys that see each other (without a window)."""
        pairs = sum(count * start + count * (count + 1) // 2 for start, count in self.rows)
        return 4 * pairs * self.of.heads * self.of.head_dim


def written(
    rows: Sequence[tuple[int, int]],
    of: Heads,
    *,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
    device: torch.device,
    seed: int = 0,
) -> Problem:
    """Random keys and values, written as a server would, in blocks that lie anywhere; everything else is NaN."""
    problem = _empty(rows, of, block_size, dtype, kv_dtype or dtype, device, layers=1, seed=seed)
    generator = torch.Generator(device).manual_seed(seed)
    cache, table = problem.caches[0], problem.metadata.block_table
    for part in cache.tensors():
        part.fill_(float("nan") if part.dtype.is_floating_point else 99)
    for number, (start, count) in enumerate(problem.rows):
        first = 0 if of.window is None else max(0, start + 1 - of.window)  # what no query sees stays NaN
        place = torch.arange(first, start + count, device=device)
        slots = table[number, place // block_size].long() * block_size + place % block_size
        shape = (len(place), of.kv_heads, of.head_dim)
        keys, values = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
        write_kv(keys, values, cache, slots)
    return problem


def filled(
    rows: Sequence[tuple[int, int]],
    of: Heads,
    *,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
    device: torch.device,
    layers: int,
    seed: int = 0,
) -> Problem:
    """Whole caches of random numbers, for measuring: quick to make however large they are."""
    problem = _empty(rows, of, block_size, dtype, kv_dtype or dtype, device, layers=layers, seed=seed)
    for cache in problem.caches:
        fill(cache)
    return problem


def fill(cache: KVCache) -> None:
    """Random numbers in every slot, with scales that make them about one in size."""
    for part in (cache.keys, cache.values):
        if part.dtype is torch.int8:
            part.random_(-127, 128)
        elif part.element_size() == 1:
            part.view(torch.uint8).random_(0, 256).bitwise_and_(0xFE)  # any bits but those of float8's NaN
        else:
            part.normal_()
    for scales in (cache.key_scales, cache.value_scales):
        if scales is not None:
            scales.fill_(1 / 64)


def _empty(
    rows: Sequence[tuple[int, int]],
    of: Heads,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
    *,
    layers: int,
    seed: int,
) -> Problem:
    ordered = sorted(rows, key=lambda row: row[1] > 1)
    counts = [-(-(start + count) // block_size) for start, count in ordered]
    blocks = sum(counts) + 3  # some stay unused
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    table = torch.full((len(ordered), max(counts)), PAST_THE_END, dtype=torch.int32)
    begin = 0
    for number, count in enumerate(counts):
        table[number, :count] = order[begin : begin + count]
        begin += count
    caches = [
        new_cache(blocks, block_size, of.kv_heads, of.head_dim, dtype=kv_dtype, device=device, implementation="triton")
        for _ in range(layers)
    ]
    generator = torch.Generator(device).manual_seed(seed + 1)
    tokens = sum(count for _, count in ordered)
    query = torch.randn(tokens, of.heads, of.head_dim, generator=generator, device=device).mul_(2).to(dtype)
    return Problem(ordered, of, query, caches, _metadata(ordered, table.to(device), block_size))


def _metadata(rows: Sequence[tuple[int, int]], table: Tensor, block_size: int) -> AttentionMetadata:
    query_lens, context_lens = [count for _, count in rows], [start + count for start, count in rows]
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    row = torch.tensor([number for number, count in enumerate(query_lens) for _ in range(count)], device=table.device)
    place = torch.cat([torch.arange(start, start + count) for start, count in rows]).to(table.device)
    return AttentionMetadata(
        num_decode=sum(count == 1 for count in query_lens),
        query_start=starts.to(table.device),
        context_len=torch.tensor(context_lens, dtype=torch.int32, device=table.device),
        block_table=table,
        slot_mapping=table[row, place // block_size].long() * block_size + place % block_size,
        query_lens=query_lens,
        context_lens=context_lens,
        max_query=max(query_lens),
        max_context=max(context_lens),
    )

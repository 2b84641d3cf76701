"""The attention function of the contract, by Triton's kernels: decode rows first, then the others.

Grids come from `num_decode`, `max_query` and `max_context` alone, and nothing is read back from the device, so that a
step can be captured into a CUDA graph and replayed with other metadata up to these bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.triton import tiles
from leokernels.triton.decode import decode_combine, paged_decode, paged_decode_grouped
from leokernels.triton.jit import early_options, launch_options
from leokernels.triton.prefill import paged_prefill
from leokernels.triton.tiles import CHUNK, Tile

LOG2_E = 1.4426950408889634  # the kernels take exponentials of 2
WORKSPACE = "triton workspace"  # of AttentionMetadata.plans


@dataclass(frozen=True, slots=True)
class Workspace:
    """Decoding's partial results, `n` of them: one for each head and chunk of each row. All layers share it.

    A runner that captures graphs puts one that is large enough into `plans[WORKSPACE]` of every step's metadata;
    otherwise the first layer of a step makes it.
    """

    partial: Tensor  # [n, head_dim] float32
    log_sums: Tensor  # [n] float32

    @classmethod
    def new(
        cls, rows: int, heads: int, head_dim: int, *, max_context: int, window: int | None, device: torch.device
    ) -> Workspace:
        """For up to `rows` decode rows of up to `max_context` keys."""
        results = rows * heads * decode_chunks(max_context, window)
        return cls(
            torch.empty(results, head_dim, dtype=torch.float32, device=device),
            torch.empty(results, dtype=torch.float32, device=device),
        )


def decode_chunks(max_context: int, window: int | None) -> int:
    """How many chunks a decode row may see something of."""
    chunks = -(-max(1, max_context) // CHUNK)
    return chunks if window is None else min(chunks, 1 + -(-(window - 1) // CHUNK))


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """See contract.AttentionFunction. `scale` > 0. Tokens that belong to no row keep what `out` holds."""
    call = _Call(query, cache, metadata, scale * LOG2_E, window, out)
    if metadata.num_decode:
        call.decode()
    if metadata.num_decode < len(metadata.query_lens):
        call.prefill()


@dataclass(slots=True)
class _Call:
    """What both launches have in common."""

    query: Tensor  # [T, heads, head_dim]
    cache: KVCache
    metadata: AttentionMetadata
    scale: float  # to powers of 2
    window: int | None
    out: Tensor

    def __post_init__(self) -> None:
        if not all(part.is_contiguous() for part in self.cache.tensors()):
            raise ValueError("the Triton attention reads a cache without gaps: allocate it by new_cache")
        if self.query.stride(2) != 1 or self.out.stride(2) != 1:
            raise ValueError("the Triton attention needs each head's elements next to each other")

    @property
    def sharing(self) -> int:
        """Heads that share a KV head."""
        return self.query.shape[1] // self.cache.keys.shape[2]

    def shape(self) -> dict[str, int]:
        """The constants of a network's kernels."""
        _, block_size, kv_heads, head_dim = self.cache.keys.shape
        return {
            "HEADS": self.query.shape[1],
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "WINDOW": self.window or 0,
            "QUANTIZED": self.cache.key_scales is not None,
        }

    def pages(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.cache.keys, self.cache.values, self.cache.key_scales, self.cache.value_scales

    def tile(self, table: Callable[[tuple[int, int], int, int, int, bool], Tile]) -> Tile:
        """What one of the tables has for this GPU, network and cache."""
        capability, cached_bytes = tiles.capability(self.query.device), self.cache.keys.element_size()
        return table(capability, self.query.shape[2], self.sharing, cached_bytes, self.window is not None)

    def workspace(self, results: int) -> Workspace:
        found = self.metadata.plans.get(WORKSPACE)
        if not isinstance(found, Workspace) or found.log_sums.shape[0] < results:
            _, heads, head_dim = self.query.shape
            found = Workspace.new(
                self.metadata.num_decode,
                heads,
                head_dim,
                max_context=self.metadata.max_context,
                window=self.window,
                device=self.query.device,
            )
            self.metadata.plans[WORKSPACE] = found
        return found

    def decode(self) -> None:
        rows, (_, heads, head_dim) = self.metadata.num_decode, self.query.shape
        kv_heads = self.cache.keys.shape[2]
        chunks = decode_chunks(self.metadata.max_context, self.window)
        space = self.workspace(rows * heads * chunks)
        context_len, table = self.metadata.context_len, self.metadata.block_table
        tile = self.tile(tiles.decode)
        early = early_options(tiles.early(tiles.capability(self.query.device), rows))
        programs = min(chunks, max(1, tiles.DECODE_PROGRAMS // (rows * kv_heads)))
        kernel = paged_decode if tile.rows == 1 else paged_decode_grouped
        kernel[(kv_heads, programs, rows)](
            self.query,
            *self.pages(),
            space.partial,
            space.log_sums,
            context_len,
            table,
            table.stride(0),
            chunks,
            self.scale,
            *self.query.stride()[:2],
            **self.shape(),
            CHUNK=CHUNK,
            **({"STAGES": tile.stages} if tile.rows == 1 else {"ROWS": tile.rows}),
            KEYS=tile.keys,
            **early,
            **_options(tile),
        )
        decode_combine[(heads, rows)](
            space.partial,
            space.log_sums,
            self.out,
            context_len,
            chunks,
            *self.out.stride()[:2],
            HEADS=heads,
            HEAD_DIM=head_dim,
            WINDOW=self.window or 0,
            CHUNK=CHUNK,
            TAKEN=tiles.COMBINE_CHUNKS,
            **early,
            **launch_options(tiles.COMBINE_WARPS, 1),
        )

    def prefill(self) -> None:
        metadata, kv_heads = self.metadata, self.cache.keys.shape[2]
        tile = self.tile(tiles.prefill)
        packed = 1 << (self.sharing - 1).bit_length()
        tokens = tile.rows // packed
        most_tiles = 1 + -(-(metadata.max_query - 1) // tokens)  # a chunk may begin and end in the middle of one
        rows = len(metadata.query_lens) - metadata.num_decode
        paged_prefill[(most_tiles, kv_heads, rows)](
            self.query,
            self.out,
            *self.pages(),
            metadata.query_start,
            metadata.context_len,
            metadata.block_table,
            metadata.num_decode,
            metadata.block_table.stride(0),
            self.scale,
            *self.query.stride()[:2],
            *self.out.stride()[:2],
            **self.shape(),
            PACKED=packed,
            ROWS=tile.rows,
            KEYS=tile.keys,
            **_options(tile),
        )


def _options(tile: Tile) -> dict[str, Any]:
    """How a tile is launched."""
    options = launch_options(tile.warps, tile.stages)
    return options if tile.registers is None else options | {"maxnreg": tile.registers}

"""A step's rows as libraries with ragged batches ask for them: where each row's queries and keys begin."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from leokernels.contract import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Ragged:
    """Some of a step's rows, n of them, which follow each other."""

    query_start: Tensor  # [n + 1] int32, from 0
    key_start: Tensor  # [n + 1] int32: sums of the contexts before
    context_len: Tensor  # [n] int32
    block_table: Tensor  # [n, max_blocks] int32
    max_query: int
    max_context: int


def ragged(metadata: AttentionMetadata, *, decode: bool) -> Ragged:
    """The decode rows, or the others; worked out once for all layers."""
    key = ("ragged", decode)
    made = metadata.plans.get(key)
    if not isinstance(made, Ragged):
        made = metadata.plans[key] = _ragged(metadata, decode)
    return made


def _ragged(metadata: AttentionMetadata, decode: bool) -> Ragged:
    first, stop = (0, metadata.num_decode) if decode else (metadata.num_decode, len(metadata.query_lens))
    context = metadata.context_len[first:stop]
    return Ragged(
        query_start=metadata.query_start[first : stop + 1] - first,  # before it are decode rows, of one token each
        key_start=F.pad(context.cumsum(0), (1, 0)).int(),
        context_len=context,
        block_table=metadata.block_table[first:stop],
        max_query=1 if decode else metadata.max_query,
        max_context=metadata.max_context,
    )

"""Attention over a paged key-value cache: one contract, a plain reference, and faster ways to the same numbers."""

from leokernels.attention import attention, new_cache
from leokernels.cache import write_kv
from leokernels.contract import AttentionMetadata, KVCache, UnsupportedAttention
from leokernels.fused import Fused, choose_fused
from leokernels.table import NAMES, Choice, Place, choose

__all__ = [
    "NAMES",
    "AttentionMetadata",
    "Choice",
    "Fused",
    "KVCache",
    "Place",
    "UnsupportedAttention",
    "attention",
    "choose",
    "choose_fused",
    "new_cache",
    "write_kv",
]

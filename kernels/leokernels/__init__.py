"""Attention over a paged key-value cache: one contract, a plain reference, and faster ways to the same numbers."""

from leokernels.attention import NAMES, Choice, attention, choose, new_cache
from leokernels.cache import write_kv
from leokernels.contract import AttentionMetadata, KVCache, UnsupportedAttention

__all__ = [
    "NAMES",
    "AttentionMetadata",
    "Choice",
    "KVCache",
    "UnsupportedAttention",
    "attention",
    "choose",
    "new_cache",
    "write_kv",
]

"""Attention over a paged key-value cache: one contract, a plain reference, and faster ways to the same numbers."""

from leokernels.attention import attention, new_cache
from leokernels.cache import write_kv
from leokernels.contract import AttentionMetadata, KVCache, UnsupportedAttention
from leokernels.fused import Fused, choose_fused
from leokernels.product import Product, UnsupportedProduct, choose_product
from leokernels.table import NAMES, Choice, Place, choose

__all__ = [
    "NAMES",
    "AttentionMetadata",
    "Choice",
    "Fused",
    "KVCache",
    "Place",
    "Product",
    "UnsupportedAttention",
    "UnsupportedProduct",
    "attention",
    "choose",
    "choose_fused",
    "choose_product",
    "new_cache",
    "write_kv",
]

"""Bytes of a network and of its cache, from the network's shape alone. No torch: who plans needs no device."""

from __future__ import annotations

from leoserve.model.config import ModelConfig

SCALE_BYTES = 4  # of each token and KV head of an 8-bit cache, for keys and for values


def block_bytes(config: ModelConfig, block_size: int, itemsize: int) -> int:
    """Bytes of one block: `block_size` positions of keys and values in every layer, and of scales in 8-bit caches."""
    head = config.head_dim * itemsize + (SCALE_BYTES if itemsize == 1 else 0)
    return 2 * config.num_layers * block_size * config.num_kv_heads * head


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of the network's parameters."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return (config.num_layers * layer + embeddings + config.hidden_size) * itemsize


def gpu_budget(total: int, available: int, reserve: int, utilization: float) -> int:
    """Bytes for the cache of a GPU of `total` bytes with `available` left: what `utilization` of it leaves.

    `reserve` bytes are what steps need beside the cache.
    """
    return max(0, available - reserve - int(total * (1 - utilization)))


def useful_blocks(max_model_len: int, block_size: int, max_num_seqs: int) -> int:
    """More blocks than all sequences at full length can hold are of no use."""
    return -(-max_model_len // block_size) * max_num_seqs

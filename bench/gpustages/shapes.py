"""LeoLM's networks in numbers, and small ones in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leoserve.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a network's matrix products and its attention."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 32128  # rows; 32007 ids have a token
    context: int = 8192

    def products(self) -> dict[str, tuple[int, int]]:
        """Columns and rows of the weights of a layer's products, and of the head's."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (self.hidden, query + 2 * key_value),
            "output": (query, self.hidden),
            "gate_up": (self.hidden, 2 * self.inner),
            "down": (self.inner, self.hidden),
            "head": (self.hidden, self.vocab),
        }

    @property
    def product_weights(self) -> int:
        """Weights that every token is multiplied with."""
        sizes = {name: columns * rows for name, (columns, rows) in self.products().items()}
        head = sizes.pop("head")
        return self.layers * sum(sizes.values()) + head

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of a token's keys and values in all layers, and of their scales in 8 bits."""
        return 2 * self.layers * self.kv_heads * (self.head_dim * itemsize + (4 if itemsize == 1 else 0))

    def config(self, dtype: torch.dtype) -> ModelConfig:
        """As LeoLM's config.json says it: positions divided by 2."""
        return ModelConfig(
            architecture="LlamaForCausalLM",
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            rope_factor=2.0,
            max_position_embeddings=self.context,
            sliding_window=None,
            tie_word_embeddings=False,
            dtype=str(dtype).removeprefix("torch."),
        )


SEVEN = Shape("7B", 4096, 11008, 32, 32, 32)
THIRTEEN = Shape("13B", 5120, 13824, 40, 40, 40)
SEVENTY = Shape("70B", 8192, 28672, 80, 64, 8)
TINY = Shape("tiny", 64, 96, 1, 1, 1, head_dim=64, vocab=512, context=256)

"""The network of LeoLM, Llama's and Mistral's, read from top to bottom in the order the data goes.

T tokens of several sequences run through together, one after the other in one ragged batch; only attention knows which
belong together. Numerically it follows the original: norms and rotary angles in float32, everything else in `dtype`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels import AttentionMetadata, KVCache, attention, native, new_cache
from leokernels.fused import TORCH, Fused
from leokernels.product import Multiply, torch_linear
from leoserve.model.config import ModelConfig
from leoserve.model.linear import Linear, min_rows, pad_rows


class Llama:
    """`attention`, `fused` and `multiply` are what leokernels chose; the cache is of `kv_dtype`, or of `dtype`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: str = "reference",
        fused: Fused = TORCH,
        multiply: Multiply = torch_linear,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.attention = attention
        self.fused = fused
        self.kv_dtype = kv_dtype or dtype
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [Layer(config, dtype, device, attention, fused, multiply) for _ in range(config.num_layers)]
        self.norm = Norm(config, dtype, device, fused)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype=dtype, device=device, multiply=multiply)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding
        self.angles = rotary_angles(config, device)
        self._min_rows = min_rows(self.embedding)
        self.native: native.Network | None = None  # all layers in one call, where all of their kernels are native

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        kv: Sequence[KVCache],
        metadata: AttentionMetadata,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """tokens and positions [T] int64, one cache a layer -> hidden [T, hidden_size] after the last norm.

        Writes the T tokens' keys and values into the slots that the metadata name. `wanted` [W] int64: give those
        tokens' hidden states only, [W, hidden_size]; of the others the last layer computes nothing but attention.
        """
        if self.native is not None:
            return self.native(tokens, positions, kv, metadata, wanted)
        count = tokens.shape[0]
        tokens = pad_rows(tokens, self._min_rows)
        angles = self.angles[pad_rows(positions, self._min_rows)]
        x = F.embedding(tokens, self.embedding)  # [rows, hidden_size]
        residual = None
        for layer, cache in zip(self.layers, kv, strict=True):
            kept = wanted if layer is self.layers[-1] else None
            x, residual = layer(x, residual, angles, cache, metadata, count, kept)
        return self.norm(x, residual)[0][: count if wanted is None else len(wanted)]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden_size] -> [R, vocab_size] float32"""
        count = hidden.shape[0]
        return self.head.wide(pad_rows(hidden, self._min_rows))[:count]

    def new_cache(self, num_blocks: int, block_size: int) -> list[KVCache]:
        """An empty cache for this network's attention, layer by layer."""
        config = self.config
        return [
            new_cache(
                num_blocks,
                block_size,
                config.num_kv_heads,
                config.head_dim,
                dtype=self.kv_dtype,
                device=self.device,
                implementation=self.attention,
            )
            for _ in range(config.num_layers)
        ]

    def prepare(self) -> None:
        """After loading: pack the weights for this device, one after the other."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
                linear.prepare()
        self.head.prepare()
        layers = [layer.native() for layer in self.layers]
        if self.attention == self.fused.name == "native" and None not in layers:
            config = self.config
            self.native = native.Network(
                self.embedding,
                self.angles,
                [layer for layer in layers if layer is not None],
                self.norm.weight,
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                eps=config.rms_norm_eps,
                window=config.sliding_window,
            )

    def try_products(self, kinds_of_rows: Sequence[int]) -> None:
        """Multiply each kind of weight by so many rows: its kernels are compiled now, and not while serving."""
        layer = self.layers[0]
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down, self.head):
            for rows in kinds_of_rows:
                linear(torch.zeros(rows, linear.shape[1], dtype=self.dtype, device=self.device))

    def destinations(self) -> dict[str, Tensor]:
        """Where each tensor of a checkpoint goes, by its published name: whole tensors or slices of the fused ones."""
        config = self.config
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm.weight}
        if not config.tie_word_embeddings:
            found["lm_head.weight"] = _weight(self.head)
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        for number, layer in enumerate(self.layers):
            prefix = f"model.layers.{number}."
            qkv, gate_up, inner = _weight(layer.qkv), _weight(layer.gate_up), config.intermediate_size
            found |= {
                prefix + "self_attn.q_proj.weight": qkv[:query],
                prefix + "self_attn.k_proj.weight": qkv[query : query + key_value],
                prefix + "self_attn.v_proj.weight": qkv[query + key_value :],
                prefix + "self_attn.o_proj.weight": _weight(layer.output),
                prefix + "mlp.gate_proj.weight": gate_up[:inner],
                prefix + "mlp.up_proj.weight": gate_up[inner:],
                prefix + "mlp.down_proj.weight": _weight(layer.down),
                prefix + "input_layernorm.weight": layer.attention_norm.weight,
                prefix + "post_attention_layernorm.weight": layer.mlp_norm.weight,
            }
        return found


class Layer:
    """Attention, then the gated MLP; each is added to what came in.

    What the MLP gives is added by the next layer's norm, which reads and writes the sum anyway.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        attention: str,
        fused: Fused,
        multiply: Multiply,
    ) -> None:
        self.config = config
        self.attention = attention
        self.fused = fused
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        linear = partial(Linear, dtype=dtype, device=device, multiply=multiply)
        self.attention_norm = Norm(config, dtype, device, fused)
        self.qkv = linear(hidden, query + 2 * key_value)
        self.output = linear(query, hidden)
        self.mlp_norm = Norm(config, dtype, device, fused)
        self.gate_up = linear(hidden, 2 * inner)
        self.down = linear(inner, hidden)
        self.min_rows = min_rows(self.attention_norm.weight)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        angles: Tensor,
        cache: KVCache,
        metadata: AttentionMetadata,
        count: int,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x and residual [rows, hidden_size], of which the first `count` are tokens and the rest padding -> the same.

        `residual` is the sum of what all before the last gave, and `x` what the last one gave. `wanted` [W] int64: go
        on from attention with these rows only.
        """
        normed, residual = self.attention_norm(x, residual)
        mixed = self._attend(normed, angles, cache, metadata, count)
        if wanted is not None:
            mixed, residual = (pad_rows(part[wanted], self.min_rows) for part in (mixed, residual))
        normed, residual = self.mlp_norm(self.output(mixed), residual)
        return self.down(self.fused.silu_and_mul(self.gate_up(normed))), residual

    def native(self) -> native.LayerWeights | None:
        """For the native network, if all weights are packed for it."""
        linears = (self.qkv, self.output, self.gate_up, self.down)
        packed = [linear.native for linear in linears if linear.native is not None]
        if len(packed) < len(linears):
            return None
        return native.LayerWeights(self.attention_norm.weight, self.mlp_norm.weight, *packed)

    def _attend(self, x: Tensor, angles: Tensor, cache: KVCache, metadata: AttentionMetadata, count: int) -> Tensor:
        """[rows, heads * head_dim]"""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = self.qkv(x).view(-1, heads + 2 * kv_heads, config.head_dim)  # [rows, heads + 2 kv_heads, head_dim]
        query = self.fused.rope_and_cache(qkv, angles, cache, metadata.slot_mapping, heads, kv_heads)
        mixed = torch.empty_like(query)  # [rows, heads, head_dim]
        if count < len(mixed):
            mixed[count:] = 0
        attention(
            query[:count],
            cache,
            metadata,
            scale=config.head_dim**-0.5,
            window=config.sliding_window,
            out=mixed[:count],
            implementation=self.attention,
        )
        return mixed.flatten(1)


class Norm:
    """Adds up, and norms the sum to a root mean square of one."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, fused: Fused) -> None:
        self.weight = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.eps = config.rms_norm_eps
        self.fused = fused

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and residual [rows, hidden_size] -> their sum, normed, and the sum"""
        return self.fused.rms_norm(x, self.weight, self.eps, residual)


def rotary_angles(config: ModelConfig, device: torch.device) -> Tensor:
    """Cosine and sine of every position: [max_position_embeddings, 2, 1, head_dim / 2] float32.

    Linear scaling divides positions by `rope_factor`; it is applied to the frequencies, as the original does.
    """
    even = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
    frequency = 1.0 / config.rope_theta ** (even / config.head_dim) / config.rope_factor
    position = torch.arange(config.max_position_embeddings, device=device).float()
    angle = torch.outer(position, frequency)
    return torch.stack([angle.cos(), angle.sin()], 1)[:, :, None]


def _weight(linear: Linear) -> Tensor:
    if linear.weight is None:
        raise RuntimeError("the weights are packed already")
    return linear.weight

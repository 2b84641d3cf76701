"""The network of LeoLM, Llama's and Mistral's, read from top to bottom in the order the data goes.

T tokens of several sequences run through together, one after the other in one ragged batch; only attention knows which
belong together. Numerically it follows the original: norms and rotary angles in float32, everything else in `dtype`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels import AttentionMetadata, KVCache, attention, new_cache, write_kv
from leoserve.model.config import ModelConfig
from leoserve.model.linear import MIN_ROWS, MIN_ROWS_PACKED, Linear, can_pack, pad_rows


class Llama:
    """`attention` names the implementation that leokernels.choose chose."""

    def __init__(
        self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, attention: str = "reference"
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.attention = attention
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [Layer(config, dtype, device, attention) for _ in range(config.num_layers)]
        self.norm = Norm(config, dtype, device)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype=dtype, device=device)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding
        self.angles = rotary_angles(config, device)
        self._min_rows = _min_rows(self.embedding)

    def forward(self, tokens: Tensor, positions: Tensor, kv: Sequence[KVCache], metadata: AttentionMetadata) -> Tensor:
        """tokens and positions [T] int64, one cache a layer -> hidden [T, hidden_size] after the last norm.

        Writes the T tokens' keys and values into the slots that the metadata name.
        """
        count = tokens.shape[0]
        tokens = pad_rows(tokens, self._min_rows)
        angles = self.angles[pad_rows(positions, self._min_rows)]
        hidden = F.embedding(tokens, self.embedding)  # [T, hidden]
        for layer, cache in zip(self.layers, kv, strict=True):
            hidden = layer(hidden, angles, cache, metadata, count)
        return self.norm(hidden)[:count]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden_size] -> [R, vocab_size] float32"""
        count = hidden.shape[0]
        return self.head(pad_rows(hidden, self._min_rows))[:count].float()

    def new_cache(self, num_blocks: int, block_size: int) -> list[KVCache]:
        """An empty cache for this network's attention, layer by layer."""
        config = self.config
        return [
            new_cache(
                num_blocks,
                block_size,
                config.num_kv_heads,
                config.head_dim,
                dtype=self.dtype,
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
    """Attention, then the gated MLP; each is added to what came in."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, attention: str) -> None:
        self.config = config
        self.attention = attention
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = Norm(config, dtype, device)
        self.qkv = Linear(hidden, query + 2 * key_value, dtype=dtype, device=device)
        self.output = Linear(query, hidden, dtype=dtype, device=device)
        self.mlp_norm = Norm(config, dtype, device)
        self.gate_up = Linear(hidden, 2 * inner, dtype=dtype, device=device)
        self.down = Linear(inner, hidden, dtype=dtype, device=device)

    def __call__(
        self, hidden: Tensor, angles: Tensor, cache: KVCache, metadata: AttentionMetadata, count: int
    ) -> Tensor:
        """hidden [rows, hidden_size], of which the first `count` are tokens and the rest padding -> the same"""
        hidden = hidden + self._attend(self.attention_norm(hidden), angles, cache, metadata, count)
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)  # each [rows, intermediate]
        return hidden + self.down(F.silu(gate) * up)

    def _attend(self, x: Tensor, angles: Tensor, cache: KVCache, metadata: AttentionMetadata, count: int) -> Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = self.qkv(x).view(-1, heads + 2 * kv_heads, config.head_dim)  # [rows, heads + 2 kv_heads, head_dim]
        rotated = rotate(qkv[:, : heads + kv_heads], angles)
        query, key = rotated[:, :heads], rotated[:, heads:]
        value = qkv[:, heads + kv_heads :]
        write_kv(key[:count], value[:count], cache, metadata.slot_mapping)
        mixed = torch.zeros_like(query, memory_format=torch.contiguous_format)  # [rows, heads, head_dim]
        attention(
            query[:count],
            cache,
            metadata,
            scale=config.head_dim**-0.5,
            window=config.sliding_window,
            out=mixed[:count],
            implementation=self.attention,
        )
        return self.output(mixed.flatten(1))


class Norm:
    """Root mean square norm, in float32 up to the weight."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.eps = config.rms_norm_eps

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden_size] -> the same"""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_angles(config: ModelConfig, device: torch.device) -> Tensor:
    """Cosine and sine of every position: [max_position_embeddings, 2, 1, head_dim / 2] float32.

    Linear scaling divides positions by `rope_factor`; it is applied to the frequencies, as the original does.
    """
    even = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
    frequency = 1.0 / config.rope_theta ** (even / config.head_dim) / config.rope_factor
    position = torch.arange(config.max_position_embeddings, device=device).float()
    angle = torch.outer(position, frequency)
    return torch.stack([angle.cos(), angle.sin()], 1)[:, :, None]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: x [rows, heads, head_dim] by angles [rows, 2, 1, head_dim / 2].

    Element `i` is paired with `i + head_dim / 2`. In float32, rounded once to the dtype of x.
    """
    cos, sin = angles.unbind(1)  # each [rows, 1, head_dim / 2]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _weight(linear: Linear) -> Tensor:
    if linear.weight is None:
        raise RuntimeError("the weights are packed already")
    return linear.weight


def _min_rows(sample: Tensor) -> int:
    if sample.device.type != "cpu":
        return 1
    return MIN_ROWS_PACKED if can_pack(sample) else MIN_ROWS

"""Attention: one function, and one table that says which implementation computes it here, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from leokernels import cpu, reference
from leokernels.cache import EIGHT_BIT
from leokernels.contract import AttentionFunction, AttentionMetadata, KVCache, UnsupportedAttention

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A row of the table: where an implementation runs. An empty tuple is no restriction."""

    name: str
    function: AttentionFunction
    reason: str  # why it is taken where it fits
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    head_dims: tuple[int, ...] = ()
    block_multiple: int = 1
    capability: tuple[int, int] | None = None  # at least; of CUDA devices only
    package: str | None = None  # that must be installed
    by_head: bool = False  # new_cache lays a block out head by head, its keys transposed

    def obstacle(self, device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
        """Why it cannot run there, or None."""
        if self.devices and device.type not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, not on {device.type}"
        if self.dtypes and dtype not in self.dtypes:
            return f"it has no {_name(dtype)}"
        if self.head_dims and head_dim not in self.head_dims:
            return f"it has head sizes {', '.join(map(str, self.head_dims))}, not {head_dim}"
        if block_size % self.block_multiple:
            return f"it needs blocks of a multiple of {self.block_multiple} tokens, not {block_size}"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.capability and torch.cuda.get_device_capability(device) < self.capability:
            return f"it needs compute capability {self.capability[0]}.{self.capability[1]}"
        return None


# Best first: the first that fits is taken.
TABLE = (
    Implementation(
        name="cpu",
        function=cpu.attention,
        reason="walks the cache's blocks without copying a context",
        devices=("cpu",),
        dtypes=(torch.float32, *HALF),
        by_head=True,
    ),
    Implementation(name="reference", function=reference.attention, reason="plain torch, nothing faster fits here"),
)
NAMES = tuple(entry.name for entry in TABLE)
_BY_NAME = {entry.name: entry for entry in TABLE}


@dataclass(frozen=True, slots=True)
class Choice:
    """The implementation to use, and one line that says why."""

    name: str
    reason: str


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int, override: str = "auto") -> Choice:
    """The best implementation for this device, dtype, head size and block size, or the one named by `override`.

    Raises UnsupportedAttention when `override` names none, or one that does not fit here.
    """
    obstacles = {entry.name: entry.obstacle(device, dtype, head_dim, block_size) for entry in TABLE}
    fitting = [name for name in NAMES if obstacles[name] is None]
    where = f"{device.type}, {_name(dtype)}, head size {head_dim}, blocks of {block_size}"
    if override != "auto":
        if override not in _BY_NAME:
            raise UnsupportedAttention(f"no attention is called {override!r}; for {where} there is {_either(fitting)}")
        if obstacles[override] is not None:
            raise UnsupportedAttention(
                f"attention {override!r} does not fit: {obstacles[override]}; for {where} there is {_either(fitting)}"
            )
        return Choice(override, "asked for")
    return Choice(fitting[0], f"{_BY_NAME[fitting[0]].reason} ({where})")


def new_cache(
    num_blocks: int,
    block_size: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str,
) -> KVCache:
    """One layer's keys and values, as `implementation` reads them; with scales when `dtype` has 8 bits.

    Not initialized: a slot that was not written is never read, and on a host a page takes memory and time only once it
    is used. The strides, and for bfloat16 on a CPU the keys' dtype (float16, of the same size), are the
    implementation's affair: index and copy whole blocks only.
    """
    if _entry(implementation).by_head:
        keys = torch.empty(num_blocks, kv_heads, head_dim, block_size, dtype=cpu.key_dtype(dtype), device=device)
        values = torch.empty(num_blocks, kv_heads, block_size, head_dim, dtype=dtype, device=device)
        return KVCache(keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3))
    shape = (num_blocks, block_size, kv_heads, head_dim)
    keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    if dtype not in EIGHT_BIT:
        return KVCache(keys, values)
    key_scales, value_scales = (torch.empty(shape[:3], dtype=torch.float32, device=device) for _ in range(2))
    return KVCache(keys, values, key_scales, value_scales)


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    implementation: str,
) -> Tensor:
    """Attention of the T query tokens over their sequences' cached keys; the contract says which each sees.

    `query` [T, heads, head_dim]; the cache is new_cache's, already holding this step's keys and values. Returns `out`
    [T, heads, head_dim], of the query's dtype. A row's result has the same bits whatever rows are beside it.
    """
    out = torch.empty_like(query) if out is None else out
    function = _entry(implementation).function
    function(query, cache, metadata, scale=scale, window=window, out=out)
    return out


def _entry(name: str) -> Implementation:
    if name not in _BY_NAME:
        raise UnsupportedAttention(f"no attention is called {name!r}; there is {_either(list(NAMES))}")
    return _BY_NAME[name]


def _either(names: list[str]) -> str:
    return " or ".join(names)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""One table that says which implementation computes attention here, and why; and the rule that picks from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leokernels import cpu, flash, native, reference, varlen
from leokernels.cache import EIGHT_BIT
from leokernels.contract import AttentionFunction, AttentionMetadata, KVCache, UnsupportedAttention
from leokernels.installed import triton_missing

HALF = (torch.bfloat16, torch.float16)
FLASH_HEAD_DIMS = (32, 64, 96, 128, 160, 192, 224, 256)  # that FlashAttention-2's libraries have kernels for
Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where attention is to run, and over what."""

    device: torch.device
    dtype: torch.dtype  # of the queries
    head_dim: int
    block_size: int | None = None  # None: the implementation's own
    kv_dtype: torch.dtype | None = None  # of the cache; None: that of the queries
    deterministic: bool = False  # a row's bits may not depend on what else is in the batch

    def __str__(self) -> str:
        parts = [self.device.type, dtype_name(self.dtype), f"head size {self.head_dim}"]
        if self.kv_dtype is not None:
            parts.append(f"cache of {dtype_name(self.kv_dtype)}")
        if self.block_size is not None:
            parts.append(f"blocks of {self.block_size}")
        if self.deterministic:
            parts.append("deterministic")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A row of the table: where an implementation runs. An empty tuple is no restriction."""

    name: str
    function: AttentionFunction
    reason: str  # why it is taken where it fits
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    head_dims: tuple[int, ...] = ()
    block_size: int = 64  # its own: large blocks are read in long runs, small ones share more of a prefix
    block_sizes: tuple[int, ...] = ()
    block_multiple: int = 1
    capability: Capability | None = None  # at least; of CUDA devices only
    eight_bit: dict[torch.dtype, Capability | None] = field(default_factory=dict)  # of caches, and what each needs
    missing: Callable[[], str | None] | None = None  # what is not installed
    invariant: bool = True  # a row's bits do not depend on what else is in the batch
    capturable: bool = False  # a step of it may be captured into a CUDA graph
    # Of the keys, where new_cache lays a block out head by head, its keys transposed; None: it does not.
    key_dtype: Callable[[torch.dtype], torch.dtype] | None = None

    def obstacle(self, place: Place) -> str | None:
        """Why it cannot run there, or None."""
        device, size = place.device, place.block_size or self.block_size
        if self.devices and device.type not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, not on {device.type}"
        needed = [("it", self.capability)]
        if place.kv_dtype is not None and place.kv_dtype is not place.dtype:
            if place.kv_dtype not in self.eight_bit:
                return f"it reads no cache of {dtype_name(place.kv_dtype)}"
            needed.append((f"a cache of {dtype_name(place.kv_dtype)}", self.eight_bit[place.kv_dtype]))
        if self.dtypes and place.dtype not in self.dtypes:
            return f"it has no {dtype_name(place.dtype)}"
        if self.head_dims and place.head_dim not in self.head_dims:
            return f"it has head sizes {_list(self.head_dims)}, not {place.head_dim}"
        if self.block_sizes and size not in self.block_sizes:
            return f"it has blocks of {_list(self.block_sizes)} tokens, not {size}"
        if size % self.block_multiple:
            return f"it needs blocks of a multiple of {self.block_multiple} tokens, not {size}"
        if place.deterministic and not self.invariant:
            return "its sums depend on what else is in the batch"
        return next((old for what, least in needed if (old := too_old(device, what, least))), None) or (
            self.missing() if self.missing else None
        )


def too_old(device: torch.device, what: str, least: Capability | None) -> str | None:
    """Why a GPU is too old for `what`, which needs at least a compute capability of `least`, or None."""
    if least is None or device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= least:
        return None
    return f"{what} needs a GPU of compute capability {least[0]}.{least[1]}, and this one has {major}.{minor}"


def triton_attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """Triton's, imported where it is used. See contract.AttentionFunction."""
    function: AttentionFunction = importlib.import_module("leokernels.triton.attention").attention
    function(query, cache, metadata, scale=scale, window=window, out=out)


# Best first: the first that fits is taken.
TABLE = (
    Implementation(
        name="native",
        function=native.attention,
        reason="this server's own kernels, which read the cache where it lies",
        devices=("cpu",),
        dtypes=tuple(native.KINDS),
        head_dims=native.HEAD_DIMS,
        block_multiple=native.BLOCK_MULTIPLE,
        missing=native.missing,
        key_dtype=lambda dtype: dtype,
    ),
    Implementation(
        name="cpu",
        function=cpu.attention,
        reason="torch's, walks the cache's blocks without copying a context",
        devices=("cpu",),
        dtypes=(torch.float32, *HALF),
        key_dtype=cpu.key_dtype,
    ),
    Implementation(
        name="triton",
        function=triton_attention,
        reason="this server's own FlashAttention-2 over paged caches",
        devices=("cuda",),
        dtypes=HALF,
        head_dims=(64, 128),
        block_sizes=(16, 32, 64, 128, 256),
        capability=(8, 0),
        eight_bit={torch.int8: None, torch.float8_e4m3fn: (8, 9)},
        missing=triton_missing,
        capturable=True,
    ),
    Implementation(
        name="flash_attn",
        function=flash.attention,
        reason="FlashAttention-2 by its authors",
        devices=("cuda",),
        dtypes=HALF,
        head_dims=FLASH_HEAD_DIMS,
        block_size=256,
        block_multiple=256,
        capability=(8, 0),
        missing=flash.missing,
        invariant=False,
    ),
    Implementation(
        name="torch_varlen",
        function=varlen.attention,
        reason="PyTorch's FlashAttention-2, slow for few rows with long contexts",
        devices=("cuda",),
        dtypes=HALF,
        head_dims=FLASH_HEAD_DIMS,
        block_size=256,
        block_multiple=256,
        capability=(8, 0),
        missing=varlen.missing,
    ),
    Implementation(
        name="reference",
        function=reference.attention,
        reason="plain torch, slow; nothing faster fits here",
        invariant=False,
        eight_bit=dict.fromkeys(EIGHT_BIT),
    ),
)
NAMES = tuple(entry.name for entry in TABLE)
_BY_NAME = {entry.name: entry for entry in TABLE}


@dataclass(frozen=True, slots=True)
class Choice:
    """The implementation to use, and one line that says why."""

    name: str
    reason: str
    block_size: int
    capturable: bool = False  # into a CUDA graph
    passed_over: tuple[str, ...] = ()  # better ones for this device, each with what stands in its way


def choose(place: Place, override: str = "auto") -> Choice:
    """The best implementation for this place, or the one named by `override`.

    Raises UnsupportedAttention when `override` names none, or one that does not fit here.
    """
    if override != "auto":
        return _asked_for(place, override)
    passed_over: list[str] = []
    for candidate in TABLE:
        obstacle = candidate.obstacle(place)
        if obstacle is None:
            return _choice(candidate, place, f"{candidate.reason} ({place})", tuple(passed_over))
        if not candidate.devices or place.device.type in candidate.devices:
            passed_over.append(f"{candidate.name}: {obstacle}")
    raise UnsupportedAttention(f"no attention fits {place}: {'; '.join(passed_over)}")


def entry(name: str) -> Implementation:
    """The table's row of this name. Raises UnsupportedAttention when there is none."""
    if name not in _BY_NAME:
        raise UnsupportedAttention(f"no attention is called {name!r}; there is {_either(NAMES)}")
    return _BY_NAME[name]


def _asked_for(place: Place, name: str) -> Choice:
    found = _BY_NAME.get(name)
    obstacle = found.obstacle(place) if found else None
    if found is not None and obstacle is None:
        return _choice(found, place, "as --attention says", ())
    wrong = f"attention {name!r} does not fit: {obstacle}" if found else f"no attention is called {name!r}"
    fitting = [candidate.name for candidate in TABLE if candidate.obstacle(place) is None]
    raise UnsupportedAttention(f"{wrong}; for {place} there is {_either(fitting)}")


def _choice(taken: Implementation, place: Place, reason: str, passed_over: tuple[str, ...]) -> Choice:
    return Choice(taken.name, reason, place.block_size or taken.block_size, taken.capturable, passed_over)


def _either(names: tuple[str, ...] | list[str]) -> str:
    return " or ".join(names) or "none"


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`, as users write it."""
    return str(dtype).removeprefix("torch.")

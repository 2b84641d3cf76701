"""Which library this processor takes, its functions, and the threads that they share.

The functions are called through ctypes with addresses. One thread at a time may call them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from leokernels.native import build

VERSION = 8  # of the functions' signatures, as the library says it
KINDS = {torch.float32: 0, torch.bfloat16: 1}


@cache
def variant() -> str | None:
    """Which library this processor takes; None: none is made for it."""
    return variant_of(processor())


@dataclass(frozen=True, slots=True)
class Processor:
    """What the system says of it."""

    vendor: str
    flags: frozenset[str]


def variant_of(processor: Processor) -> str | None:
    """The fastest of the variants that it can run.

    AMD multiplies pairs of bfloat16 at twice the rate of float32; Intel at the same, and then float32 loses nothing.
    """
    flags = processor.flags
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= flags:
        return "avx512pairs" if "avx512_bf16" in flags and processor.vendor == "AuthenticAMD" else "avx512"
    if {"avx2", "fma"} <= flags:
        return "avx2"
    return "base" if "asimd" in flags else None


@cache
def processor() -> Processor:
    """Of this machine, by Linux; elsewhere nothing is known."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    fields = dict(part.partition(":")[::2] for part in reversed(lines))
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return Processor(
        named.get("vendor_id", ""), frozenset(named.get("flags", "").split() + named.get("Features", "").split())
    )


def has_matrix_units() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX), which oneDNN uses and this library does not."""
    return "amx_bf16" in processor().flags


@cache
def missing() -> str | None:
    """Why the library cannot be used here, or None."""
    name = variant()
    if name is None:
        return "it is made for x86-64 with AVX2 or AVX-512 and for 64-bit Arm"
    file = file_of(name)
    if not file.exists():
        return "it was not compiled when this package was built (no C++ compiler)"
    try:
        found = ctypes.CDLL(str(file))
        version = found.leo_version()
    except (OSError, AttributeError) as error:
        return f"it cannot be loaded: {error}"
    return None if version == VERSION else f"it is of another version ({version}, not {VERSION}): build it again"


def file_of(name: str) -> Path:
    return Path(__file__).with_name(build.library(name))


@dataclass(frozen=True, slots=True)
class Library:
    """The functions."""

    pool_new: Callable[[int], int]
    packed_bytes: Callable[..., int]
    pack: Callable[..., None]
    multiply: Callable[..., None]
    mask: Callable[..., None]
    choose: Callable[..., None]
    norm: Callable[..., None]
    gate: Callable[..., None]
    rope: Callable[..., None]
    attention: Callable[..., None]
    forward: Callable[..., int]
    forward_bytes: Callable[..., int]
    follower_new: Callable[..., int]
    follower_delete: Callable[[int], None]
    follow: Callable[..., None]
    followed: Callable[[int, int], int]
    speller_new: Callable[..., int]
    speller_delete: Callable[[int], None]
    spell: Callable[..., int]


@cache
def library() -> Library:
    """Loads it. Raises RuntimeError where it is missing."""
    why, name = missing(), variant()
    if why is not None or name is None:
        raise RuntimeError(f"the native library cannot be used: {why}")
    found = ctypes.CDLL(str(file_of(name)))
    address, kind, length, job = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p
    signatures = {
        "pool_new": (address, [kind]),
        "packed_bytes": (length, [kind, length, length]),
        "pack": (None, [address, kind, address, length, length, address]),
        "multiply": (None, [address, kind, kind, address, address, address, length, length, length]),
        "mask": (None, [address, address, length, address, address, length, address, length]),
        "choose": (None, [address, job]),
        "forward": (kind, [address, kind, job, job]),
        "forward_bytes": (length, [kind, job, length]),
        "follower_new": (address, [address, job]),
        "follow": (None, [address, address, length]),
        "followed": (kind, [address, kind]),
        "speller_new": (address, [job, job, length, length]),
        "spell": (ctypes.c_size_t, [address, job, ctypes.c_size_t, address, ctypes.c_size_t]),
    }
    signatures |= {name: (None, [address, kind, job]) for name in ("norm", "gate", "rope", "attention")}
    signatures |= {name: (None, [address]) for name in ("follower_delete", "speller_delete")}
    functions: dict[str, Callable[..., object]] = {}
    for function, (result, arguments) in signatures.items():
        functions[function] = entry = getattr(found, f"leo_{function}")
        entry.restype, entry.argtypes = result, arguments
    return Library(**functions)  # type: ignore[arg-type]


@cache
def pool_of(threads: int) -> int:
    return library().pool_new(threads)


def use_threads(count: int | None) -> None:
    """So many threads from now on, whatever torch has; None: as many as torch.

    A process that computes with this library alone leaves torch one thread: torch's spin for a while after each of
    their jobs, on cores that others could use.
    """
    global _threads
    _threads = count


_threads: int | None = None


def pool() -> int:
    """The address of the threads."""
    return pool_of(_threads or torch.get_num_threads())

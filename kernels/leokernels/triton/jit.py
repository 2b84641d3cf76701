"""`triton.jit` with types, and with the two promises that serving needs of it.

No variant is compiled in the middle of serving because some length happened to be divisible by 16: what changes from
step to step is named and not specialized on. And whether a product and a sum become one rounding is said at every
launch, since Triton's own default for it depends on its version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import triton
import triton.language as tl

FP_FUSION = True  # a * b + c may be rounded once; the same in every variant, whatever TRITON_DEFAULT_FP_FUSION says


class Kernel(Protocol):
    """A function of Triton's language: launched from the host over a grid, or called from another kernel."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *arguments: Any) -> Any: ...


def jit(function: Callable[..., Any]) -> Kernel:
    """Decorate a function that kernels call, or a kernel all of whose numbers are the same in every step."""
    kernel: Kernel = triton.jit(function)
    return kernel


def kernel(*, varying: Sequence[str] = (), unaligned: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a kernel. `varying`: numbers that change from step to step. `unaligned`: tensors read by the element.

    One compiled variant serves all values of the former and any alignment of the latter.
    """

    def decorate(function: Callable[..., Any]) -> Kernel:
        made: Kernel = triton.jit(
            function,
            do_not_specialize=list(varying),
            do_not_specialize_on_alignment=list(unaligned),
        )
        return made

    return decorate


def launch_options(warps: int, stages: int) -> dict[str, Any]:
    """What every launch says beside its arguments."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": FP_FUSION}


def early_options(early: bool) -> dict[str, Any]:
    """Of a kernel with a constant EARLY: whether it starts before those launched before it have ended.

    Programmatic dependent launch, in CUDA graphs too: a kernel may start once every program of the one before has
    called `start_next` or returned. Every kernel calls it first, so several may be waiting while one computes.

    What holds for each such kernel, whatever is launched around it: every one of its programs calls
    `wait_for_previous`, and before that reads nothing that a step writes, and writes nothing. Then no two kernels are
    ever at work on a step's memory at once. For the wait ends when the kernel before has ended, with all its writes
    visible; that one had itself waited before its end, and so on back to one that started normally, after everything
    before it. So when a kernel reads, all that was launched earlier has written; and when it writes, all that was
    launched earlier has read, however many kernels ago: a workspace or freed memory may be used again. A kernel that
    takes no part, as the library's, starts normally, when the one before has ended; a kernel after it finds it ended.
    """
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@jit
def start_next(EARLY: tl.constexpr) -> None:
    """The kernel launched next may start, as far as there is room for it."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@jit
def wait_for_previous(EARLY: tl.constexpr) -> None:
    """Until the kernel launched before this one has ended."""
    if EARLY:
        tl.extra.cuda.gdc_wait()

"""Compiling many kernels at once: each variant takes seconds of one core, and Triton keeps what it compiled on disk."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from gpustages.place import Place

PROCESSES = 12  # of an H200's host, which has 16 cores

Calls = Callable[[Place], Iterable[Callable[[], object]]]


def warm(place: Place, calls: Calls, *, seconds: float) -> float:
    """Make these calls in some processes, each its part of them, and forget what they bring. Seconds that it took.

    What fails, or is not done in time, will be compiled, or fail, where it is really called.
    """
    begin = time.monotonic()
    if place.device.type != "cuda":
        return 0.0
    context = multiprocessing.get_context("spawn")
    plain = replace(place)  # without the buffers of its stopwatch
    processes = [context.Process(target=_make, args=(plain, calls, part), daemon=True) for part in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, begin + seconds - time.monotonic()))
        if process.is_alive():
            process.kill()
    return time.monotonic() - begin


def _make(place: Place, calls: Calls, part: int) -> None:
    with torch.inference_mode():
        for call in every(calls(place), part):
            try:
                call()
                place.synchronize()
            except Exception:
                traceback.print_exc(file=sys.stderr)


def every(calls: Iterable[Callable[[], object]], part: int) -> Iterator[Callable[[], object]]:
    """This process's part of them."""
    return (call for number, call in enumerate(calls) if number % PROCESSES == part)

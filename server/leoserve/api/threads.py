"""Where large bodies are parsed, templates rendered and texts tokenized, off the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class TextThreads:
    """A few threads, and the knowledge of whether any of them is still at work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="leoserve-text")
        self._lock = threading.Lock()
        self._running = 0

    @property
    def busy(self) -> bool:
        """Whether a thread is at work, be it for a client that has gone. Python would wait for it before it ends."""
        return self._running > 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function`, computed in a thread. Cancelling withdraws it as long as it has not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: self._work(function, args, kwargs))

    def close(self) -> None:
        """Take no more work, drop what has not begun, and wait for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> T:
        with self._lock:
            self._running += 1
        try:
            return function(*args, **kwargs)
        finally:
            with self._lock:
                self._running -= 1

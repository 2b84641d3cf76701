"""How much may wait: a request beyond it is refused at once rather than left to time out.

Used by two threads, the one that receives requests and the one that runs steps, so that a long step delays no refusal.
"""

from __future__ import annotations

from threading import Lock

from leoserve.engine.request import Refused, Request


class Admission:
    """Counts the choices and prompt tokens that wait for their first step, and refuses what exceeds the bounds.

    `capacity`: tokens of one sequence, prompt and answer, that the model's context and the whole cache can hold.
    A choice beyond the first shares the prompt's blocks, so a request's prompt counts once.
    """

    def __init__(self, *, capacity: int, max_waiting: int, max_waiting_tokens: int) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens
        self._lock = Lock()
        self._waiting = 0
        self._waiting_tokens = 0

    @property
    def waiting(self) -> int:
        """Choices that wait for their first step."""
        return self._waiting

    def admit(self, request: Request) -> Refused | None:
        """Count the request in, or say why not. An empty queue takes any request that fits the cache."""
        length = len(request.prompt) + request.params.max_tokens
        if not request.prompt or length > self.capacity:
            reason = f"prompt and answer take {length} tokens; a sequence can have 1 to {self.capacity}"
            return Refused(request.request_id, "never_fits", reason)
        with self._lock:
            waiting = self._waiting + request.params.n
            tokens = self._waiting_tokens + len(request.prompt)
            if self._waiting and (waiting > self.max_waiting or tokens > self.max_waiting_tokens):
                return Refused(request.request_id, "overloaded", f"{self._waiting} answers are waiting already")
            self._waiting, self._waiting_tokens = waiting, tokens
        return None

    def started(self, request: Request, index: int) -> None:
        """Choice `index` waits no longer: it got its first step, or ended before."""
        with self._lock:
            self._waiting -= 1
            self._waiting_tokens -= len(request.prompt) if index == 0 else 0

"""What is remembered of one request while it runs: for the metrics, and for its line in the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from leoserve.api.errors import CLIENT_CLOSED, ApiError, ClientGone, timed_out
from leoserve.api.rates import Charge
from leoserve.api.stream import Choice
from leoserve.engine.request import TokenOutput
from leoserve.metrics import Finish, Metrics

logger = logging.getLogger("leoserve.request")


@dataclass(slots=True)
class Record:
    """One request. Times are seconds of `time.monotonic()`, 0.0 where it did not come to that."""

    metrics: Metrics
    request_id: str
    endpoint: str
    charge: Charge | None = None  # what it takes of its client's allowance
    timeout: float | None = None  # seconds, from its arrival to the end of its answer
    arrival: float = field(default_factory=time.monotonic)
    id: str = ""
    model: str = ""
    prompt_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)  # by prompt, of its tokens
    generated_tokens: int = 0
    outputs: int = 0  # of the engine
    scheduled_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    gone: bool = False  # the client, or whatever else waited for the answer
    error: str = ""  # why it was not answered, as the client was told
    failed: int = 0  # the status of `error`
    finished: list[str] = field(default_factory=list)  # reasons, in the order of the ends

    @property
    def cached_tokens(self) -> int:
        return sum(self.cached.values())

    def time_left(self) -> float | None:
        """Seconds until it is ended, None when it may take as long as it likes."""
        return None if self.timeout is None else max(0.0, self.arrival + self.timeout - time.monotonic())

    def too_late(self) -> ApiError:
        """What the client of a request that took too long is told."""
        return timed_out(self.timeout or 0.0, begun=self.outputs > 0)

    def check_wanted(self) -> None:
        """Raises ClientGone when nobody waits for the answer: for long work in a thread, which nothing else ends."""
        if self.gone:
            raise ClientGone

    def usage(self) -> dict[str, object]:
        """OpenAI's `usage` up to now."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "total_tokens": self.prompt_tokens + self.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def note(self, prompt: int, choice: Choice, output: TokenOutput) -> None:
        """An output of `choice`, which answers prompt number `prompt`, before the choice takes it in."""
        now = time.monotonic()
        self.outputs += 1
        count = len(output.token_ids)
        self.cached.setdefault(prompt, output.num_cached_tokens)
        if count == 0:
            return
        if not self.first_token_at:
            self.first_token_at = now
            self.scheduled_at = output.scheduled_at
            self.metrics.time_to_first_token.observe(now - self.arrival)
        if choice.last_at:
            self.metrics.inter_token.observe((now - choice.last_at) / count, count)
        else:
            choice.first_at = now
        choice.last_at = self.last_token_at = now

    def note_end(self, choice: Choice, reason: Finish) -> None:
        """`choice` has ended."""
        self.finished.append(reason)
        self.metrics.finished(reason)
        if choice.generated > 1:
            self.metrics.time_per_output_token.observe((choice.last_at - choice.first_at) / (choice.generated - 1))

    def fail(self, error: ApiError) -> None:
        """The request ends with `error`."""
        self.error = error.message if error.param is None else f"{error.param}: {error.message}"
        self.failed = error.status

    def close(self, status: int) -> int:
        """The request has ended, and its response begun with this HTTP status: observe it, and log it in one line.
        Returns the status that says how it ended."""
        now = time.monotonic()
        status = CLIENT_CLOSED if "abort" in self.finished else self.failed or status
        if self.first_token_at:
            self.metrics.end_to_end.observe(now - self.arrival)
            self.metrics.decode.observe(self.last_token_at - self.first_token_at)
            self.metrics.prompt_tokens.observe(self.prompt_tokens)
            self.metrics.generation_tokens.observe(self.generated_tokens)
        if self.scheduled_at:
            self.metrics.queue.observe(max(0.0, self.scheduled_at - self.arrival))
            self.metrics.prefill.observe(max(0.0, self.first_token_at - self.scheduled_at))
        logger.info("%s", self.endpoint, extra=self.fields(status, now))
        return status

    def fields(self, status: int, now: float) -> dict[str, object]:
        return {
            "request_id": self.request_id,
            "id": self.id,
            "model": self.model,
            "status": status,
            **({"error": self.error} if self.error else {}),
            "finish_reason": ",".join(dict.fromkeys(self.finished)),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "queue_s": round(max(0.0, self.scheduled_at - self.arrival), 4) if self.scheduled_at else None,
            "ttft_s": round(self.first_token_at - self.arrival, 4) if self.first_token_at else None,
            "total_s": round(now - self.arrival, 4),
        }

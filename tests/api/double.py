"""An engine of the real one's shape that says what a test tells it to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from leoserve.engine.client import EngineRefused, EngineUnavailable, State
from leoserve.engine.request import EngineStats, ErrorKind, FinishReason, Ready, Request, TokenLogprobs, TokenOutput
from leoserve.text.tokenizer import Tokenizer

Answer = Callable[[Request, int], Sequence[int]]


@dataclass
class EngineDouble:
    """Answers every choice with the tokens of `answer(request, index)`, one a step, cut at `max_tokens`.

    `pause_after`: steps after which it waits for `resume`. `failure`: what it raises there instead of going on.
    `accept`: 0 refuses every request with `refusal`, k all after the first k.
    """

    tokenizer: Tokenizer
    answer: Answer
    state: State = "ready"
    ready: Ready | None = field(
        default_factory=lambda: Ready(
            max_model_len=256,
            block_size=16,
            num_blocks=64,
            vocab_size=1024,
            max_num_seqs=8,
            dtype="float32",
            device="cpu",
            attention="double",
            weight_bytes=0,
        )
    )
    stats: EngineStats = field(default_factory=EngineStats)
    healthy: bool = True
    in_flight: int = 0
    restarts: int = 0
    pid: int | None = None
    cached: int = 0
    pause_after: int | None = None
    failure: Exception | None = None
    refusal: EngineRefused | None = None
    accept: int = 0
    error: str | None = None
    error_kind: ErrorKind = "internal"
    error_after: int = 0  # steps
    requests: list[Request] = field(default_factory=list)
    aborts: list[tuple[str, int | None]] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        self.resume = asyncio.Event()
        self.paused = asyncio.Event()
        self.idle = asyncio.Event()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if self.state != "ready":
            raise EngineUnavailable(self.state, retry_after=5)
        self.requests.append(request)
        if self.refusal is not None and len(self.requests) > self.accept:
            await asyncio.sleep(0)
            raise self.refusal
        self.running += 1
        self.idle.clear()
        live = set(range(request.params.n))
        try:
            tokens = [self.answer(request, index) for index in range(request.params.n)]
            step = 0
            while live:
                if step == self.pause_after:
                    self.paused.set()
                    if self.failure is not None:
                        raise self.failure
                    await self.resume.wait()
                await asyncio.sleep(0)
                for index in sorted(live):
                    if {(request.request_id, index), (request.request_id, None)} & set(self.aborts):
                        live.discard(index)
                        continue
                    output = self.output(request, index, tokens[index], step)
                    if output.finish_reason is not None:
                        live.discard(index)
                    yield output
                step += 1
        finally:
            if live:
                self.aborts.append((request.request_id, None))
            self.running -= 1
            if not self.running:
                self.idle.set()

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborts.append((request_id, index))
        self.resume.set()

    def output(self, request: Request, index: int, tokens: Sequence[int], step: int) -> TokenOutput:
        params = request.params
        token = tokens[step] if step < len(tokens) else min(params.stop_token_ids, default=5)
        told = [token] if params.max_tokens else []
        finish: FinishReason | None = None
        stop_token = None
        if told and token in params.stop_token_ids:
            finish, stop_token = "stop", token
        elif step + 1 >= params.max_tokens:
            finish = "length"
        failed = self.error is not None and step >= self.error_after
        if failed:
            finish = "error"
        scores = None
        if params.prompt_logprobs is not None and index == 0 and step == 0:
            scores = [None, *(self.scored(token, params.prompt_logprobs, 0) for token in request.prompt[1:])]
        return TokenOutput(
            request.request_id,
            index,
            told,
            logprobs=None if params.logprobs is None else [self.scored(one, params.logprobs, index) for one in told],
            finish_reason=finish,
            stop_token=stop_token,
            num_cached_tokens=self.cached,
            scheduled_at=time.monotonic(),
            error=self.error if failed else None,
            error_kind=self.error_kind,
            prompt_logprobs=scores,
        )

    def scored(self, token: int, count: int, index: int) -> TokenLogprobs:
        """The token is the most likely; the more so the higher the choice's index."""
        others = [(token + offset) % 256 + 3 for offset in range(1, count)]
        top = [token, *others][:count]
        return TokenLogprobs(-0.5 / (index + 1), 1, top, [-0.5 / (index + 1), *(-1.0 - i for i in range(len(top) - 1))])

"""One API request on the engine: submit all its prompts, follow all its answers, abort what nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request as HttpRequest

from leoserve.api.context import Engine, ServerContext
from leoserve.api.errors import ClientGone, bad_request, internal_error, unavailable
from leoserve.api.record import Record
from leoserve.api.sampling import context_length
from leoserve.api.stream import Choice, Delta, TextOptions
from leoserve.engine.client import EngineRefused, EngineUnavailable
from leoserve.engine.request import Request, TokenLogprobs, TokenOutput
from leoserve.metrics import Finish

T = TypeVar("T")

TURN = 64  # outputs after which a request with many waiting lets the others have their turn


async def unless_gone(request: HttpRequest, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away or the request's time is over. Raises
    ClientGone then, or ApiError 504.

    The body of `request` must have been read. Work in a thread learns of it from the request's record.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(request))
    record: Record = request.state.record
    try:
        await asyncio.wait({task, gone}, timeout=record.time_left(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else record.too_late()
    finally:
        record.gone = not task.done()
        gone.cancel()
        if record.gone:
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


async def disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def outputs(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[TokenOutput, None]:
    """The outputs of all `requests`, as they come. Closing it, or the failure of one request, aborts them all."""
    return engine.generate(requests[0]) if len(requests) == 1 else together(engine, requests)


async def together(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[TokenOutput, None]:
    queue: asyncio.Queue[TokenOutput | Exception | None] = asyncio.Queue()

    async def follow(request: Request) -> None:
        try:
            async with aclosing(engine.generate(request)) as stream:
                async for output in stream:
                    queue.put_nowait(output)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(request)) for request in requests]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Watch:
    """Ends a generation when its client goes away, until it is closed. The body of `request` must have been read."""

    def __init__(self, request: HttpRequest, generation: Generation) -> None:
        self._generation = generation
        self._task = asyncio.ensure_future(disconnected(request))
        self._task.add_done_callback(self._ended)

    def close(self) -> None:
        self._task.cancel()

    def _ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._generation.leave()


@dataclass
class Generation:
    """The answers to one API request: choice j of prompt i is choice i * n + j.

    prompt_logprobs: by prompt, once the engine has sent them
    """

    context: ServerContext
    record: Record
    requests: list[Request]
    options: TextOptions
    choices: list[Choice] = field(init=False)
    numbers: dict[str, int] = field(init=False)  # of the requests, by their ids
    prompt_logprobs: dict[int, list[TokenLogprobs | None]] = field(default_factory=dict)
    expired: bool = False  # its time was over before its end
    left: bool = False  # its client went away before its end

    def __post_init__(self) -> None:
        tokenizer = self.context.tokenizer
        self.choices = [
            Choice(number * request.params.n + index, tokenizer, self.options, request.prompt)
            for number, request in enumerate(self.requests)
            for index in range(request.params.n)
        ]
        self.record.prompt_tokens = sum(len(request.prompt) for request in self.requests)
        self.numbers = {request.request_id: number for number, request in enumerate(self.requests)}

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What each output adds, until every choice has ended. Raises EngineError, ApiError, or ClientGone after
        `leave`."""
        if self.record.charge is not None and self.record.charge.limits_tokens:
            self.record.charge.reserve(self.record.prompt_tokens + self.announced_tokens())
        reason: Finish | None = "abort"
        left = self.record.time_left()
        timer = None if left is None else asyncio.get_running_loop().call_later(left, self._expire)
        try:
            async with aclosing(outputs(self.context.engine, self.requests)) as stream:
                async for output in stream:
                    if self.record.outputs % TURN == TURN - 1:
                        await asyncio.sleep(0)
                    if self.left:
                        break
                    number = self.numbers[output.request_id]
                    request = self.requests[number]
                    choice = self.choices[number * request.params.n + output.index]
                    if choice.finish is None:
                        yield self._take(number, request, choice, output)
            if self.expired:
                raise self.record.too_late()
            if self.left:
                raise ClientGone
        except ClientGone:
            raise
        except (EngineRefused, EngineUnavailable):
            reason = None  # it never began
            raise
        except Exception:
            reason = "error"
            raise
        finally:
            if timer is not None:
                timer.cancel()
            for choice in self.choices:
                if choice.finish is None and reason is not None:
                    self.record.note_end(choice, reason)

    def leave(self) -> None:
        """Nobody waits for the answers any more: abort what still runs."""
        self.left = True
        self._abort()

    def announced_tokens(self) -> int:
        """The most tokens of the answers, as far as the client has bounded them to less than the context's rest."""
        context = context_length(self.context)
        bounded = [one for one in self.requests if len(one.prompt) + one.params.max_tokens < context]
        return sum(request.params.n * request.params.max_tokens for request in bounded)

    def _expire(self) -> None:
        self.expired = True
        self._abort()

    def _abort(self) -> None:
        for request in self.requests:
            self.context.engine.abort(request.request_id)

    def _take(self, number: int, request: Request, choice: Choice, output: TokenOutput) -> Delta:
        if output.finish_reason == "error":
            text = output.error or "unknown error"
            if output.error_kind != "internal":
                grammar = request.params.grammar if output.error_kind == "grammar" else None
                raise bad_request(f"This request cannot be answered: {text}.", grammar.param if grammar else None)
            raise internal_error(f"The model could not answer this request: {text}.")
        if output.finish_reason == "abort":
            raise unavailable("draining", 5)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs[number] = output.prompt_logprobs
        self.record.note(number, choice, output)
        before = choice.generated
        delta = choice.push(output)
        self.record.generated_tokens += choice.generated - before
        if delta.finish is not None:
            self.record.note_end(choice, delta.finish)
            if output.finish_reason is None:
                self.context.engine.abort(request.request_id, output.index)
        return delta

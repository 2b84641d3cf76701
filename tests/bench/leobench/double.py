"""A server that a test knows everything about: it answers on a schedule, and tells when it sent what.

Run as a process: `python double.py '{"first": 0.1, "gap": 0.02, ...}'`. It prints its port. Requests are of OpenAI's
two endpoints, streamed or not; the schedule is in `Plan`. GET /log gives what it did, with instants of CLOCK_MONOTONIC,
which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from msgspec import Struct


class Plan(Struct):
    """What the server does, in seconds.

    first, gaps: from a request's arrival to its first token, and between tokens; of each list a request takes the
        place of its own number, around and around
    tokens: of an answer, unless fewer are asked for
    slots: so many requests at a time, the others wait; 0: all at once
    stall_at, stall: this long after the first request, nothing is sent for so long
    fail: of so many requests the last fails with status 503; 0: none
    drop: likewise, the connection is cut after the second token
    per_event: tokens of one event
    """

    first: tuple[float, ...] = (0.0,)
    gaps: tuple[float, ...] = (0.0,)
    tokens: int = 1_000_000
    slots: int = 0
    stall_at: float = 0.0
    stall: float = 0.0
    fail: int = 0
    drop: int = 0
    per_event: int = 1
    tokenize: bool = False
    metrics: bool = False


class Sent(Struct):
    """What happened to a request."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    arrived: float
    events: list[float] = []


class Double:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.log: list[Sent] = []
        self.running = 0
        self.generated = 0
        self.slots = asyncio.Semaphore(plan.slots) if plan.slots else None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/version", self.version)
        app.router.add_get("/log", self.tell)
        if self.plan.tokenize:
            app.router.add_post("/tokenize", self.tokenize)
        if self.plan.metrics:
            app.router.add_get("/metrics", self.metrics)
        return app

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "double"}]})

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "9.9"})

    async def tell(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.log), content_type="application/json")

    async def tokenize(self, request: web.Request) -> web.Response:
        """A token for every four characters of a word, begun ones too; seven around a message."""
        body = await request.json()
        around = 0 if "prompt" in body else 7
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        words = [ord(word[at]) for word in text.split() for at in range(0, len(word), 4)]
        return web.json_response({"count": len(words) + around, "tokens": [0] * around + words})

    async def metrics(self, _request: web.Request) -> web.Response:
        waiting = len(self.slots._waiters or ()) if self.slots else 0
        return web.Response(
            text="# HELP vllm:num_requests_running Running.\n"
            f'vllm:num_requests_running{{model_name="double"}} {self.running - waiting}\n'
            f'vllm:num_requests_waiting{{model_name="double"}} {waiting}\n'
            f'vllm:generation_tokens_total{{model_name="double"}} {self.generated}\n'
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        sent = Sent(
            len(self.log),
            await request.json(),
            {name.lower(): value for name, value in request.headers.items()},
            arrived,
        )
        self.log.append(sent)
        if self.plan.fail and (sent.number + 1) % self.plan.fail == 0:
            return web.json_response({"error": {"message": "no room"}}, status=503)
        self.running += 1
        try:
            if self.slots is None:
                return await self.generate(request, sent)
            async with self.slots:
                return await self.generate(request, sent)
        finally:
            self.running -= 1

    async def generate(self, request: web.Request, sent: Sent) -> web.StreamResponse:
        plan, body = self.plan, sent.body
        tokens = min(plan.tokens, body.get("max_tokens") or plan.tokens)
        prompt = body.get("prompt")
        usage = {"prompt_tokens": len(prompt) if isinstance(prompt, list) else 10, "completion_tokens": tokens}
        usage |= {"prompt_tokens_details": {"cached_tokens": 4}}
        chat = "messages" in body
        due = time.monotonic() if self.slots else sent.arrived
        due += plan.first[sent.number % len(plan.first)]
        gap = plan.gaps[sent.number % len(plan.gaps)]
        if not body.get("stream"):
            await self.until(due + gap * (tokens - 1))
            self.generated += tokens
            text = {"message": {"role": "assistant", "content": "Ja. " * tokens}} if chat else {"text": "Ja. " * tokens}
            return web.json_response({"choices": [{"index": 0, "finish_reason": "length", **text}], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if chat:
            await response.write(event({"delta": {"role": "assistant", "content": ""}}))
        for at in range(0, tokens, plan.per_event):
            await self.until(due + gap * at / plan.per_event)
            if plan.drop and (sent.number + 1) % plan.drop == 0 and at >= 2:
                request.transport.abort()
                return response
            sent.events.append(time.monotonic())
            self.generated += min(plan.per_event, tokens - at)
            piece = "Ja. " * min(plan.per_event, tokens - at)
            await response.write(event({"delta": {"content": piece}} if chat else {"text": piece}))
        last = {"delta": {}} if chat else {"text": ""}
        await response.write(event({**last, "finish_reason": "length"}))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def until(self, due: float) -> None:
        """Sleep, and through the stall if that is when it is due."""
        begin = self.log[0].arrived + self.plan.stall_at
        if self.plan.stall and begin <= due < begin + self.plan.stall:
            due = begin + self.plan.stall
        if (left := due - time.monotonic()) > 0:
            await asyncio.sleep(left)


def event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}).encode() + b"\n\n"


async def main() -> None:
    double = Double(msgspec.json.decode(sys.argv[1], type=Plan))
    runner = web.AppRunner(double.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())

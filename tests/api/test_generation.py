"""One request on the engine, without HTTP around it."""

from __future__ import annotations

import asyncio

import pytest

from leoserve.api.generation import TURN, Generation
from leoserve.api.record import Record
from leoserve.api.stream import TextOptions
from leoserve.engine.client import EngineRefused
from leoserve.engine.request import Request, SamplingParams

from .conftest import Running, pieces


def generation(server: Running, *, prompts: int = 1, tokens: int = 4) -> Generation:
    params = SamplingParams(max_tokens=tokens, stop_token_ids=(2,))
    requests = [Request(request_id=f"r{number}", prompt=[1], params=params, arrival=0.0) for number in range(prompts)]
    record = Record(server.context.metrics, "id", "test")
    return Generation(server.context, record, requests, TextOptions())


async def test_a_request_with_much_to_catch_up_lets_others_have_their_turn(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = 20 * TURN
    letter = pieces(server.context.tokenizer, "a")

    async def backlog(request: Request):  # type: ignore[no-untyped-def]
        for step in range(tokens):  # all there already: never suspends
            yield server.engine.output(request, 0, letter * tokens, step)

    monkeypatch.setattr(server.engine, "generate", backlog)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    text = "".join([delta.text async for delta in generation(server, tokens=tokens).deltas()])
    task.cancel()
    assert len(text) == tokens
    assert turns >= 20


@pytest.mark.parametrize("prompts", [1, 3])
async def test_closing_the_deltas_aborts_every_prompt(server: Running, prompts: int) -> None:
    server.says("Die Hauptstadt von Frankreich")
    deltas = generation(server, prompts=prompts, tokens=9).deltas()
    await anext(deltas)
    await deltas.aclose()
    assert server.engine.running == 0
    assert len(server.engine.aborts) == prompts


async def test_a_refusal_is_raised_and_counts_as_no_answer(server: Running) -> None:
    server.engine.refusal = EngineRefused("overloaded", "full")
    refused = generation(server)
    with pytest.raises(EngineRefused):
        await anext(refused.deltas())
    assert refused.record.finished == []

"""The whole product: a real server process, OpenAI's own SDK, a real engine."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

MODEL = "leo"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b", fmt="bin-sharded", rope="old")


@pytest.fixture(scope="module")
def server(serve_once: Serve, checkpoint: Path) -> Server:
    return serve_once(checkpoint, "--num-kv-blocks", "512", "--dtype", "float32")


def asynchronous(server: Server) -> openai.AsyncOpenAI:
    limits = httpx.Limits(max_connections=None)
    transport = openai.DefaultAsyncHttpxClient(limits=limits, timeout=PATIENCE)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=transport)


def gauge(server: Server, name: str) -> float:
    """One series of /metrics."""
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def until(condition: Any) -> None:
    """Poll without a deadline of its own: the test's is the limit."""
    while not condition():
        time.sleep(0.02)


def test_greedy_tokens_over_http_are_transformers_tokens(server: Server, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    generator = random.Random(3)
    prompts = [[generator.randrange(3, 300) for _ in range(generator.randrange(1, 90))] for _ in range(32)]

    async def ask() -> list[list[int]]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(stream(client, prompt) for prompt in prompts))

    async def stream(client: openai.AsyncOpenAI, prompt: list[int]) -> list[int]:
        options = {"ignore_eos": True, "return_token_ids": True}
        chunks = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=50, temperature=0, stream=True, extra_body=options
        )
        return [token async for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", None) or []]

    answers = asyncio.run(ask())
    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 50
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert answer == logits[:, : token_count(checkpoint)].argmax(-1).tolist()


def token_count(folder: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def test_256_concurrent_clients_are_all_answered(server: Server) -> None:
    async def ask() -> list[Any]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(one(client, number) for number in range(256)))

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str | None, int]:
        prompt = f"Frage {number}: " + "Wie geht es weiter? " * (number % 7)
        answer = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=12, extra_body={"ignore_eos": True}, seed=number
        )
        return answer.choices[0].finish_reason, answer.usage.completion_tokens if answer.usage else 0

    assert asyncio.run(ask()) == [("length", 12)] * 256


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(server: Server) -> None:
    async def ask(count: int) -> list[str]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(one(client, number) for number in range(count)))

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Erzähl mir etwas über {number}."}],
            seed=1,
            max_tokens=30,
        )
        return answer.choices[0].message.content or ""

    assert asyncio.run(ask(1))[0] == asyncio.run(ask(40))[0]


def test_a_scrape_tells_of_the_steps_that_were_run(server: Server) -> None:
    before = gauge(server, "leoserve_step_tokens_sum"), gauge(server, "leoserve_step_tokens_count")
    options = {"ignore_eos": True}
    server.openai().completions.create(model=MODEL, prompt=[5] * 10, max_tokens=4, extra_body=options)
    assert gauge(server, "leoserve_step_tokens_sum") - before[0] == 13  # the last one generated is never computed
    assert gauge(server, "leoserve_step_tokens_count") - before[1] == 4


def test_a_vanished_client_frees_its_blocks(server: Server) -> None:
    body = {"model": MODEL, "prompt": "Es war einmal", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as response:
        lines = response.iter_lines()  # kept: the stream closes when it is collected
        next(lines)
        with server.held():
            assert gauge(server, "vllm:num_requests_running") == 1
            assert gauge(server, "vllm:kv_cache_usage_perc") > 0
    until(lambda: gauge(server, "vllm:num_requests_running") == 0)
    assert gauge(server, "vllm:kv_cache_usage_perc") == 0


def test_a_killed_engine_is_an_error_to_those_who_wait_and_is_soon_replaced(serve: Serve, checkpoint: Path) -> None:
    server = serve(checkpoint, "--num-kv-blocks", "512")
    engine = server.engine
    chunks = server.openai().completions.create(
        model=MODEL, prompt="Leo", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(chunks)
    engine.kill()
    with pytest.raises(openai.APIError):
        list(chunks)
    refusal = httpx.post(
        f"{server.url}/v1/completions", json={"model": MODEL, "prompt": "Leo", "max_tokens": 1}, timeout=PATIENCE
    )
    assert refusal.status_code == 503
    assert 0 < int(refusal.headers["retry-after"]) <= 120
    assert httpx.get(f"{server.url}/ready", timeout=PATIENCE).status_code == 503
    assert httpx.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200
    until(lambda: httpx.get(f"{server.url}/ready", timeout=PATIENCE).status_code == 200)
    answer = server.openai().completions.create(
        model=MODEL, prompt="Leo", max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3


def test_overload_is_refused_at_once_and_what_was_admitted_is_answered(serve: Serve, checkpoint: Path) -> None:
    server = serve(checkpoint, "--max-num-seqs", "1", "--max-waiting-requests", "2", "--num-kv-blocks", "512")

    async def ask() -> list[Any]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)), return_exceptions=True)

    async def one(client: openai.AsyncOpenAI) -> str | None:
        answer = await client.completions.create(
            model=MODEL, prompt="Leo", max_tokens=1000, extra_body={"ignore_eos": True}
        )  # long enough for all to come while the first three are not done
        return answer.choices[0].finish_reason

    results = asyncio.run(ask())
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert len(refused) + results.count("length") == 20
    assert refused
    assert all(float(error.response.headers["retry-after-ms"]) > 0 for error in refused)

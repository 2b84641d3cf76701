"""Limits per minute: what a client may spend, what it is told, and what it is told to wait for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from leoserve.api.errors import ApiError
from leoserve.api.rates import Allowance, Bucket, Charge, duration
from leoserve.keyfile import Quota

from .conftest import Running, Start
from .test_errors import error_of

Advance = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """A clock that only this moves on."""
    now = 1000.0

    def move(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("leoserve.api.rates.monotonic", lambda: now)
    return move


def test_a_minutes_worth_may_be_spent_at_once_and_comes_back_evenly(advance: Advance) -> None:
    bucket = Bucket(60, [0.0, 0.0])
    assert (bucket.left, bucket.full_after) == (60, 0)
    bucket.spend(60)
    assert (bucket.left, bucket.full_after) == (0, 60)
    advance(1.5)
    assert bucket.left == 1
    assert bucket.wait_for(1) == 0
    assert bucket.wait_for(2) == pytest.approx(0.5)
    advance(58.5)
    assert (bucket.left, bucket.full_after) == (60, 0)
    advance(3600)
    assert bucket.left == 60


def test_what_is_spent_beyond_the_limit_is_paid_before_anything_else(advance: Advance) -> None:
    bucket = Bucket(60, [0.0, 0.0])
    bucket.spend(90)
    assert (bucket.left, bucket.full_after) == (0, 90)
    assert bucket.wait_for(1) == pytest.approx(31)
    advance(90)
    assert bucket.left == 60


def test_what_is_set_aside_cannot_be_spent_twice(advance: Advance) -> None:
    allowance = Allowance(Quota(tokens_per_minute=100))
    first, second = Charge(allowance), Charge(allowance)
    first.reserve(80)
    with pytest.raises(ApiError) as refused:
        second.reserve(30)
    assert (refused.value.status, refused.value.type) == (429, "tokens")
    first.settle(10)
    second.reserve(90)
    second.settle(0)
    assert allowance.buckets["tokens"].left == 90


def test_a_bucket_stays_exact_over_many_small_amounts(advance: Advance) -> None:
    bucket = Bucket(7_000, [0.0, 0.0])
    for _ in range(7_000):
        assert bucket.left >= 1
        bucket.spend(1)
    assert bucket.left == 0
    advance(60)
    assert bucket.left == 7_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.25, "1m30.25s"),
        (3600, "1h0m0s"),
        (86_399.5, "23h59m59.5s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_headers_tell_what_is_left_also_when_streaming(start: Start, advance: Advance) -> None:
    server = await start(requests_per_minute=60, tokens_per_minute=6000)
    prompt = len((await server.complete(return_token_ids=True)).json()["choices"][0]["prompt_token_ids"])
    used = prompt + server.engine.requests[0].params.max_tokens
    advance(3600)
    for number, stream in enumerate((False, True, False), start=1):
        answer = await server.complete(stream=stream, ignore_eos=True, stop_token_ids=[])
        assert answer.status_code == 200
        left = 6000 - number * used
        assert {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")} == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": str(60 - number),
            "x-ratelimit-reset-requests": f"{number}s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": str(left),
            "x-ratelimit-reset-tokens": duration(number * used * 0.01),
        }
    listed = await server.http.get("/v1/models")
    assert listed.headers["x-ratelimit-remaining-requests"] == "57"
    assert "x-ratelimit-limit-requests" not in (await server.http.get("/health")).headers


async def test_without_limits_no_headers_speak_of_them(server: Running) -> None:
    assert not any(name.startswith("x-ratelimit") for name in (await server.chat()).headers)


async def test_spent_requests_are_a_429_that_says_how_long_to_wait(start: Start, advance: Advance) -> None:
    server = await start(requests_per_minute=2)
    answers = [await server.chat(stream=stream) for stream in (False, True, False)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    error = error_of(answers[-1])
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert "Limit 2, Used 2, Requested 1" in error["message"]
    assert "try again in 30s" in error["message"]
    assert (answers[-1].headers["retry-after"], answers[-1].headers["retry-after-ms"]) == ("30", "30000")
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
    assert (await server.http.get("/v1/models")).status_code == 200  # only work counts
    advance(30)
    assert (await server.chat()).status_code == 200
    rejected = 'leoserve_requests_rejected_total{reason="rate_limited"} 1.0'
    assert rejected in (await server.http.get("/metrics")).text


async def test_refused_requests_count_too(start: Start, advance: Advance) -> None:
    server = await start(requests_per_minute=2)
    assert [(await server.chat(n=0)).status_code for _ in range(3)] == [400, 400, 429]


async def test_spent_tokens_are_a_429(start: Start, advance: Advance) -> None:
    server = await start(tokens_per_minute=300)
    assert (await server.complete(max_tokens=250, ignore_eos=True)).status_code == 200
    refused = await server.complete(max_tokens=200)
    assert (refused.status_code, error_of(refused)["type"]) == (429, "tokens")
    assert int(refused.headers["retry-after"]) > 1
    assert len(server.engine.requests) == 1


async def test_an_answer_that_ends_early_gives_back_what_was_set_aside(start: Start, advance: Advance) -> None:
    server = await start(tokens_per_minute=250)
    for _ in range(4):
        answer = await server.complete(max_tokens=200)
        assert answer.status_code == 200
        assert answer.json()["usage"]["total_tokens"] < 30


async def test_where_the_client_bounds_no_answer_only_the_prompt_is_set_aside(start: Start, advance: Advance) -> None:
    server = await start(tokens_per_minute=100)
    used = (await server.chat()).json()["usage"]["total_tokens"]
    assert used < 50
    again = await server.chat()
    assert again.status_code == 200
    answer = await server.chat(max_tokens=90)
    assert answer.status_code == 429


async def test_what_can_never_be_let_in_is_not_to_be_tried_again(start: Start, advance: Advance) -> None:
    server = await start(tokens_per_minute=100)
    answer = await server.complete(max_tokens=200)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    assert "Request too large" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    client = server.openai.with_options(max_retries=5)
    with pytest.raises(openai.RateLimitError):
        await client.completions.create(model="leo", prompt="Hallo", max_tokens=200)
    assert not server.engine.requests


async def test_refusals_of_the_engine_spend_no_tokens(start: Start, advance: Advance) -> None:
    from leoserve.engine.client import EngineRefused

    server = await start(tokens_per_minute=1000)
    server.engine.refusal = EngineRefused("overloaded", "full")
    assert (await server.chat()).status_code == 429
    server.engine.refusal = None
    assert (await server.http.get("/v1/models")).headers["x-ratelimit-remaining-tokens"] == "1000"


async def test_each_key_has_its_own_limits(start: Start, tmp_path: Path, advance: Advance) -> None:
    path = tmp_path / "keys"
    path.write_text("wenig requests_per_minute=1\nviel requests_per_minute=0\nandere\n", encoding="utf-8")
    server = await start(api_key_file=path, requests_per_minute=2)

    async def statuses(key: str) -> list[int]:
        server.http.headers["Authorization"] = f"Bearer {key}"
        return [(await server.chat()).status_code for _ in range(4)]

    assert await statuses("wenig") == [200, 429, 429, 429]
    assert await statuses("andere") == [200, 200, 429, 429]
    assert await statuses("viel") == [200] * 4
    path.write_text("wenig requests_per_minute=3\n", encoding="utf-8")
    assert await statuses("wenig") == [200, 200, 200, 429]


async def test_wrong_keys_leave_nothing_behind(start: Start) -> None:
    server = await start(api_key=["richtig"], requests_per_minute=10)
    for number in range(20):
        answer = await server.http.get("/v1/models", headers={"Authorization": f"Bearer falsch-{number}"})
        assert answer.status_code == 401
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)


async def test_the_sdk_comes_back_when_it_is_told_to(start: Start) -> None:
    server = await start(requests_per_minute=120)  # one every half a second
    while (await server.http.post("/v1/chat/completions", json={})).status_code != 429:
        pass
    client = server.openai.with_options(max_retries=5)
    question = {"role": "user", "content": "Hallo"}
    assert (await client.chat.completions.create(model="leo", messages=[question])).choices

"""Absurd requests of every field of every body, at a real server with random weights.

Each is refused as OpenAI would, or answered as asked, and the same however and whenever it is asked. The same requests
are sent in every run; `FUZZ_EXAMPLES=2000 pytest tests/fuzz` sends so many new ones to each route instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from leoserve.text.tokenizer import Tokenizer
from tests.checkpoints import write_checkpoint
from tests.conftest import Serve, Server

from .bodies import MODEL, MODELS, Body, bodies
from .invariants import Judge, check_error, ignored_fields
from .told import LOGPROBS, Told, streamed, whole

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))  # of each route
CONTEXT = 256
HANG = 120.0  # seconds, far above what an answer takes
POOL = ThreadPoolExecutor(8)

fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[phase for phase in Phase if phase is not Phase.explain],
    print_blob=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")


@pytest.fixture(scope="module")
def server(serve_once: Serve, folder: Path) -> Server:
    options = ("--dtype", "float32", "--num-kv-blocks", "128", "--max-model-len", str(CONTEXT), "--max-choices", "4")
    return serve_once(folder, *options)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=HANG) as client:
        yield client


def post(client: httpx.Client, path: str, body: Body) -> httpx.Response:
    response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    return response


def answerable(client: httpx.Client, path: str, body: Body) -> Body | None:
    """`body` without the fields that it is refused for, one after the other; None where a required one is at fault.

    Every refusal must name what is to be left out, and be the same for a stream.
    """
    while True:
        response = post(client, path, {**body, "stream": False})
        if response.status_code == 200:
            return body
        param = check_error(body, response.status_code, response.json())
        if param != "stream_options":
            again = post(client, path, {**body, "stream": True})
            assert again.status_code == response.status_code
            if param == "best_of":  # has a reason of its own in a stream
                assert check_error(body, again.status_code, again.json()) == param
            else:
                assert again.json() == response.json()
        event(f"{path} refused for {param}")
        code = response.json()["error"]["code"]
        if code == "context_length_exceeded":
            return None
        required = {name for name, field in MODELS[path].model_fields.items() if field.is_required()}
        if param is None or param in required:
            return None
        body = {name: value for name, value in body.items() if name != param}


def revealed(path: str, body: Body) -> Body:
    """The same request, which also wants to know what the tokens were."""
    if path == "/v1/responses":
        return {**body, "include": [LOGPROBS]}
    return {**body, "return_token_ids": True, "logprobs": body.get("logprobs") or (0 if "prompt" in body else True)}


def ask(client: httpx.Client, path: str, body: Body) -> Told:
    response = post(client, path, body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return whole(path, response.json())
    options = body.get("stream_options") or {}
    return streamed(path, response.text, bool(options.get("include_usage")))


def variants(path: str, body: Body) -> dict[str, Body]:
    """The same question, asked in ways that do not change the answer."""
    plain = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    bare = {name: value for name, value in plain.items() if name not in ignored_fields(path)}
    stream = {**body, "stream": True}
    found = {
        "plain": plain,
        "bare": {**bare, "priority": 3},
        "revealed": revealed(path, plain),
        "streamed": stream,
        "streamed and revealed": revealed(path, stream),
    }
    if path == "/v1/completions" and (body.get("best_of") or 0) > (body.get("n") or 1):
        del found["streamed"], found["streamed and revealed"]
    return found


def check_all(client: httpx.Client, judge: Judge, path: str, body: Body) -> None:
    """Ask in all ways at once, then plainly again, and hold the answers to the request and to each other."""
    asked = variants(path, body)
    answers = dict(zip(asked, POOL.map(lambda one: ask(client, path, one), asked.values()), strict=True))
    plain, known = answers["plain"], answers["revealed"]
    judge.check(path, asked["revealed"], known)
    alone = ask(client, path, asked["plain"])
    assert alone == plain
    for name, answer in answers.items():
        assert [choice.said for choice in answer.choices] == [choice.said for choice in plain.choices], name
        assert answer.usage is None or answer.usage == plain.usage, name
    for one, other in (("streamed", "plain"), ("streamed and revealed", "revealed")):
        if one in answers:
            check_same(answers[one], answers[other])
    for choice in plain.choices:
        event(f"{path} {choice.finish}")


def check_same(stream: Told, answer: Told) -> None:
    """A stream tells all that the whole answer does."""
    for told, expected in zip(stream.choices, answer.choices, strict=True):
        assert told.said == expected.said
        assert told.token_ids == expected.token_ids
        assert told.logprobs == expected.logprobs
        assert told.prompt_token_ids == expected.prompt_token_ids
        assert told.prompt_logprobs == expected.prompt_logprobs


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", MODELS)
def test_whatever_is_asked_is_refused_or_answered_as_asked(
    client: httpx.Client, tokenizer: Tokenizer, path: str
) -> None:
    judge = Judge(tokenizer, CONTEXT)

    @fuzzed
    @given(bodies(path, tokenizer))
    def fuzz(body: Body) -> None:
        answered = answerable(client, path, body)
        if answered is None:
            event(f"{path} never answered")
            return
        check_all(client, judge, path, answered)

    fuzz()

"""Every row of the parameter table on both endpoints, alone and with the others: each answer is what was asked for,
comes again for the same seed, and is the same streamed. A real server, a real model that speaks German."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import leoserve.demo
from leoserve.text.tokenizer import Tokenizer
from tests.conftest import PATIENCE, Serve, Server

from .answers import Checker, check_shape, check_stream_shape, events, numbers, streamed_choices, told_by, whole_choices
from .pairwise import all_pairs

Body = dict[str, Any]
MODEL = "leoserve-demo"
TOKENIZER = Tokenizer.load(Path(leoserve.demo.__file__).parent / "model")
WORD = TOKENIZER.encode("Paris", add_bos=False)[0]
ORDINARY = [token for token in range(300, 800) if token not in TOKENIZER.special_ids]

SHARED: dict[str, list[Any]] = {
    "n": [1, 3],
    "temperature": [1.0, 0, 0.001, 2],
    "top_p": [1.0, 0, 0.9],
    "top_k": [0, -1, 1, 5],
    "min_p": [0.0, 0.2, 1],
    "presence_penalty": [0.0, -2, 2],
    "frequency_penalty": [0.0, -2, 2],
    "repetition_penalty": [1.0, 1.5],
    "logit_bias": [{}, {str(WORD): -100, "400": 3.5}],
    "allowed_token_ids": [None, ORDINARY],
    "bad_words": [[], ["Paris", "e"]],
    "seed": [7, 0, -(2**63), 2**63 - 1],
    "stop": [None, "i", ["Hauptstadt von", "an", ".", " d"], []],
    "stop_token_ids": [[], [WORD, 500]],
    "include_stop_str_in_output": [False, True],
    "ignore_eos": [False, True],
    "min_tokens": [0, 4],
    "max_tokens": [12, 1, 5],
    "prompt_logprobs": [None, 0, 3],
    "truncate_prompt_tokens": [None, -1, 5],
    "skip_special_tokens": [True, False],
    "return_token_ids": [True, False],
    "stream_options": [
        None,
        {"include_usage": True},
        {"include_usage": True, "continuous_usage_stats": True},
        {"include_obfuscation": True},
    ],
    "priority": [0, -1, 5],
    "cache_salt": [None, "Salz"],
    "user": [None, "Leo"],
}
IDS = TOKENIZER.encode("Was ist die Hauptstadt von Frankreich?")
COMPLETIONS: dict[str, list[Any]] = {
    "prompt": ["Die Hauptstadt von Österreich", ["Grüße aus", "Köln"], IDS, [IDS, IDS[:4]], "", "<s> Die Stadt"],
    "logprobs": [None, 0, 1, 20],
    "echo": [False, True],
    "best_of": [None, "n", "n + 2"],
    "add_special_tokens": [True, False],
    "max_tokens": [12, 0, 1, 5],
}
QUESTION = {"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}
CHATS: dict[str, list[Any]] = {
    "messages": [
        [QUESTION],
        [{"role": "developer", "content": [{"type": "text", "text": "Sprich Deutsch."}]}, QUESTION],
        [QUESTION, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Und von Österreich?"}],
    ],
    "logprobs": [False, True],
    "top_logprobs": [None, 0, 20],
    "add_generation_prompt": [None, True, False],
}
FIELDS = {"/v1/completions": SHARED | COMPLETIONS, "/v1/chat/completions": SHARED | CHATS}


@pytest.fixture(scope="module")
def server(serve_once: Serve) -> Server:
    return serve_once(None, "--dtype", "float32")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def settled(row: Body) -> Body:
    """A body of these values, which must not contradict each other."""
    body = {name: value for name, value in row.items() if value is not None} | {"model": MODEL}
    body["min_tokens"] = min(body.get("min_tokens", 0), body["max_tokens"])
    if not body.get("logprobs") or "messages" not in body:
        body.pop("top_logprobs", None)
    if body.get("echo") and "truncate_prompt_tokens" in body:
        body["return_token_ids"] = True  # nothing else tells what the echo begins with
    if "best_of" in body:
        body["best_of"] = body["n"] + 2 * ("2" in body["best_of"])
    return body


def alone(fields: dict[str, list[Any]]) -> Iterator[Body]:
    """Every value of every field beside the others' first ones."""
    first = {name: values[0] for name, values in fields.items()}
    yield settled(first)
    for name, values in fields.items():
        for value in values[1:]:
            body = settled(first | {name: value} | ({"logprobs": True} if name == "top_logprobs" else {}))
            yield body


def prompts(body: Body) -> list[Any]:
    given = body.get("prompt", "")
    single = isinstance(given, str) or isinstance(given[0], int)
    return [given] if single else given


def check(client: httpx.Client, path: str, body: Body) -> None:
    """Ask whole, twice, and streamed; assert that all is as asked for and the same."""
    checker = Checker(TOKENIZER, body, prompts(body))
    whole = {name: value for name, value in body.items() if name != "stream_options"}
    choices = []
    for _ in range(2):
        response = client.post(path, json=whole)
        assert response.status_code == 200, response.text
        answer = response.json()
        check_shape(whole, answer)
        choices.append(about_prompt(answer, whole_choices(body, answer)))
        checker.check(choices[-1], answer["usage"])
    check_same(choices[1], choices[0])
    response = client.post(path, json=body | {"stream": True})
    if body.get("best_of", 1) > body["n"]:
        assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")
        return
    assert response.status_code == 200, response.text
    chunks = events(response.text)
    check_stream_shape(body, chunks)
    streamed = about_prompt(chunks[0], streamed_choices(body, [chunk for chunk in chunks if chunk["choices"]]))
    usage = chunks[-1].get("usage") if not chunks[-1]["choices"] else None
    checker.check(streamed, usage)
    check_same(streamed, choices[0])
    assert usage is None or usage["completion_tokens"] == answer["usage"]["completion_tokens"]


def about_prompt(answer: Body, choices: list[Body]) -> list[Body]:
    """A chat tells about its prompt once: brought to the form of completions."""
    told = {name: answer[name] for name in ("prompt_token_ids", "prompt_logprobs") if name in answer}
    return [choice | told for choice in choices]


def check_same(found: list[Body], expected: list[Body]) -> None:
    assert list(told_by(found)) == list(told_by(expected))
    mine = list(numbers([[choice[name] for name in sorted(choice) if "logprobs" in name] for choice in found]))
    theirs = list(numbers([[choice[name] for name in sorted(choice) if "logprobs" in name] for choice in expected]))
    assert [each for each in mine if not isinstance(each, float)] == [e for e in theirs if not isinstance(e, float)]
    floats = [each for each in mine if isinstance(each, float)]
    assert floats == pytest.approx([each for each in theirs if isinstance(each, float)], abs=1e-3)


@pytest.mark.parametrize("path", FIELDS)
def test_every_value_of_every_field_alone(client: httpx.Client, path: str) -> None:
    for body in alone(FIELDS[path]):
        try:
            check(client, path, body)
        except AssertionError as error:
            raise AssertionError(f"{body}") from error


@pytest.mark.parametrize(("path", "row"), [(path, row) for path, fields in FIELDS.items() for row in all_pairs(fields)])
def test_every_pair_of_values_together(client: httpx.Client, path: str, row: Body) -> None:
    check(client, path, settled(row))


def test_all_of_them_at_once_get_the_answers_that_each_gets_alone(client: httpx.Client) -> None:
    requests = [(path, settled(row)) for path, fields in FIELDS.items() for row in all_pairs(fields, seed=1)]
    for _, body in requests:
        body.pop("stream_options", None)

    def ask(request: tuple[str, Body]) -> list[Body]:
        path, body = request
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return about_prompt(response.json(), whole_choices(body, response.json()))

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, requests))
    for request, choices in zip(requests, together, strict=True):
        check_same(choices, ask(request))

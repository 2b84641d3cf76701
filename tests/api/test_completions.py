"""POST /v1/completions, through a real server."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from leoserve.api import completions
from leoserve.api.errors import ClientGone
from leoserve.api.record import Record
from leoserve.engine.request import Request
from leoserve.text.tokenizer import Tokenizer
from tests.conftest import PATIENCE

from .conftest import Running, pieces


async def test_an_answer_has_every_field_of_openais_shape(server: Running) -> None:
    body = (await server.complete()).json()
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", body.pop("id"))
    assert body.pop("created") > 1_700_000_000
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "text_completion",
        "model": "leo",
        "service_tier": "default",
        "choices": [{"index": 0, "text": "Paris.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 4,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert server.engine.requests[0].params.max_tokens == 16


async def test_the_sdk_reads_an_answer_and_a_stream(server: Running) -> None:
    whole = await server.openai.completions.create(model="leo", prompt="Hallo", logprobs=1)
    assert whole.choices[0].text == "Paris."
    stream = await server.openai.completions.create(model="leo", prompt="Hallo", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Paris."


async def test_all_four_forms_of_prompts_are_understood(server: Running, tokenizer: Tokenizer) -> None:
    ids = [pieces(tokenizer, "Paris"), pieces(tokenizer, "Köln")]
    text = [tokenizer.encode("Paris"), tokenizer.encode("Köln")]
    for prompt, expected in (("Paris", text[:1]), (["Paris", "Köln"], text), (ids[0], ids[:1]), (ids, ids)):
        server.engine.requests.clear()
        answer = await server.complete(prompt=prompt)
        assert answer.status_code == 200
        assert sorted(request.prompt for request in server.engine.requests) == sorted(expected)
        assert len(answer.json()["choices"]) == len(expected)


async def test_a_text_begins_with_one_bos_and_may_spell_control_tokens(server: Running, tokenizer: Tokenizer) -> None:
    await server.complete(prompt="<s><|im_start|>user")
    await server.complete(prompt="Paris", add_special_tokens=False)
    first, second = (request.prompt for request in server.engine.requests)
    assert first[:2] == [tokenizer.bos_id, tokenizer.token_id("<|im_start|>")]
    assert tokenizer.bos_id not in first[1:]
    assert tokenizer.bos_id not in second


@pytest.mark.parametrize("prompt", ["", [""], [], [[]]])
async def test_an_empty_prompt_starts_from_the_bos(server: Running, tokenizer: Tokenizer, prompt: Any) -> None:
    answer = await server.complete(prompt=prompt)
    if prompt == []:  # no prompt at all
        assert answer.status_code == 400
    else:
        assert answer.status_code == 200
        assert server.engine.requests[0].prompt == [tokenizer.bos_id]


async def test_without_a_bos_an_empty_prompt_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.context.tokenizer, "bos_id", None)
    answer = await server.complete(prompt=["Paris", ""])
    assert answer.status_code == 400
    assert "Prompt 1 is empty" in answer.json()["error"]["message"]


async def test_choice_j_of_prompt_i_has_the_index_i_n_plus_j(server: Running, tokenizer: Tokenizer) -> None:
    names = {tuple(tokenizer.encode(name)): name for name in ("Paris", "Köln")}

    def answer(request: Request, index: int) -> list[int]:
        return pieces(tokenizer, names[tuple(request.prompt)] + "a" * (index + 1)) + [min(tokenizer.stop_ids)]

    server.engine.answer = answer
    expected = ["Parisa", "Parisaa", "Kölna", "Kölnaa"]
    body: dict[str, Any] = {"prompt": ["Paris", "Köln"], "n": 2}
    choices = (await server.complete(**body)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"] for choice in choices] == expected
    texts = [""] * 4
    for chunk in (await server.events("/v1/completions", **body))[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == expected


async def test_a_thousand_prompts_are_answered_in_one_request(server: Running) -> None:
    answer = await server.complete(prompt=["Paris"] * 1024)
    assert len(answer.json()["choices"]) == 1024
    assert answer.json()["usage"]["completion_tokens"] == 4 * 1024


async def test_an_equal_seed_is_the_same_for_every_prompt(server: Running) -> None:
    await server.complete(prompt=["Paris", "Köln"], seed=7)
    assert [request.params.seed for request in server.engine.requests] == [7, 7]
    server.engine.requests.clear()
    await server.complete(prompt=["Paris", "Paris"])
    first, second = (request.params.seed for request in server.engine.requests)
    assert first != second


async def test_best_of_returns_the_likeliest_of_all_it_generated(server: Running) -> None:
    server.says("a", "b", "c", "d")
    answer = (await server.complete(best_of=4, n=2)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["d", "c"], "the double scores later choices higher"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 8
    assert server.engine.requests[0].params.n == 4


async def test_logprobs_have_one_entry_a_token_and_offsets_into_the_text(server: Running, tokenizer: Tokenizer) -> None:
    server.says("Köln ist schön")
    choice = (await server.complete(logprobs=2)).json()["choices"][0]
    told = choice["logprobs"]
    assert set(told) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert "".join(told["tokens"]) == choice["text"] == "Köln ist schön"
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == logprob
        assert len(top) == 2
    zero = (await server.complete(logprobs=0)).json()["choices"][0]["logprobs"]
    assert [list(top) for top in zero["top_logprobs"]] == [[token] for token in zero["tokens"]]


async def test_echo_with_logprobs_and_no_tokens_scores_the_prompt(server: Running, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Die Hauptstadt")
    answer = (await server.complete(prompt=ids, echo=True, logprobs=1, max_tokens=0)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "Die Hauptstadt"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == [tokenizer.token_text(token) for token in ids]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert all(isinstance(value, float) for value in choice["logprobs"]["token_logprobs"][1:])
    assert answer["usage"]["completion_tokens"] == 0


async def test_the_evaluation_harness_finds_its_continuations_scores(server: Running, tokenizer: Tokenizer) -> None:
    """lm-evaluation-harness drops the context's entries and the generated token, and compares with the best."""
    context, continuation = tokenizer.encode("Die"), tokenizer.encode(" Hauptstadt", add_bos=False)
    body = {"prompt": [context + continuation] * 2, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    for choice in (await server.complete(**body, seed=1234)).json()["choices"]:
        scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
        best = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert len(scores) == len(continuation)
        assert all(score == max(top.values()) for score, top in zip(scores, best, strict=True))


async def test_a_streamed_echo_comes_first_with_its_scores(server: Running) -> None:
    body: dict[str, Any] = {"prompt": "Hallo", "echo": True, "logprobs": 1, "n": 2}
    whole = (await server.complete(**body)).json()["choices"]
    text = ["", ""]
    told: list[dict[str, list[Any]]] = [{}, {}]
    for chunk in (await server.events("/v1/completions", **body))[:-1]:
        choice = chunk["choices"][0]
        text[choice["index"]] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            told[choice["index"]].setdefault(name, []).extend(values)
    assert text == [choice["text"] for choice in whole] == ["HalloParis."] * 2
    assert told == [choice["logprobs"] for choice in whole]


async def test_token_ids_and_prompt_logprobs_are_told_for_each_choice(server: Running, tokenizer: Tokenizer) -> None:
    body: dict[str, Any] = {"prompt": ["Hallo", "Paris"], "return_token_ids": True, "prompt_logprobs": 1}
    choices = (await server.complete(**body)).json()["choices"]
    for choice, text in zip(choices, body["prompt"], strict=True):
        assert choice["prompt_token_ids"] == tokenizer.encode(text)
        assert choice["token_ids"][-1] in tokenizer.stop_ids
        assert [next(iter(told)) for told in choice["prompt_logprobs"][1:]] == [
            str(token) for token in tokenizer.encode(text)[1:]
        ]
    first = (await server.events("/v1/completions", **body))[0]["choices"][0]
    assert first["prompt_token_ids"] in [tokenizer.encode(text) for text in body["prompt"]]
    assert first["prompt_logprobs"][0] is None


async def test_control_tokens_in_token_prompts_are_taken_as_they_are(server: Running, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_id("<|im_start|>"), 300]
    await server.complete(prompt=ids)
    assert server.engine.requests[0].prompt == ids


async def test_bad_words_are_tokenized_once_however_many_prompts(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = server.context.tokenizer
    encode, words = tokenizer.encode_bad_word, []

    def counting(word: str) -> list[list[int]]:
        words.append(word)
        return encode(word)

    monkeypatch.setattr(tokenizer, "encode_bad_word", counting)
    body: dict[str, Any] = {"prompt": ["Hallo"] * 50, "bad_words": ["Köln", "Straße"]}
    assert (await server.complete(**body)).status_code == 200
    assert words == ["Köln", "Straße"]
    seeds = [request.params.seed for request in server.engine.requests]
    assert len(set(seeds)) == 50
    server.engine.requests.clear()
    assert (await server.complete(**body, seed=5)).status_code == 200
    assert {request.params.seed for request in server.engine.requests} == {5}


async def test_no_further_prompt_is_tokenized_for_a_client_that_has_gone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, encode = completions.prepare, server.context.tokenizer.encode
    loop, begun, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    records: list[Record] = []
    prompts: list[str] = []
    outcomes: list[type[BaseException]] = []

    def noting(context: Any, body: Any, record: Record, salt: str) -> Any:
        records.append(record)
        try:
            return prepare(context, body, record, salt)
        except BaseException as error:
            outcomes.append(type(error))
            raise
        finally:
            loop.call_soon_threadsafe(ended.set)

    def slow(text: str, **options: Any) -> list[int]:
        prompts.append(text)
        loop.call_soon_threadsafe(begun.set)
        deadline = time.monotonic() + 60
        while not records[0].gone and time.monotonic() < deadline:
            time.sleep(0.001)
        return encode(text, **options)

    monkeypatch.setattr(completions, "prepare", noting)
    monkeypatch.setattr(server.context.tokenizer, "encode", slow)
    client = asyncio.create_task(server.complete(prompt=["Hallo"] * 5))
    await begun.wait()
    client.cancel()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert (prompts, outcomes) == (["Hallo"], [ClientGone])
    assert not server.engine.requests

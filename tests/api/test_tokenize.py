"""POST /tokenize, /detokenize and /v1/chat/completions/render."""

from __future__ import annotations

from typing import Any

import pytest

from leoserve.text.tokenizer import Tokenizer

from .conftest import Running, Start
from .test_errors import error_of

QUESTION = {"role": "user", "content": "Hallo"}
PATHS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "Hallo"},
    "/detokenize": {"tokens": [5]},
    "/v1/chat/completions/render": {"model": "leo", "messages": [QUESTION]},
}


async def post(server: Running, path: str, **body: Any) -> dict[str, Any]:
    answer = await server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_text_has_the_tokens_that_a_completion_would_read(server: Running) -> None:
    for prompt in ("Grüße aus Köln 🦁", "<s>Hallo<|im_end|>", ""):
        for add in (True, False):
            told = await post(server, "/tokenize", prompt=prompt, add_special_tokens=add)
            assert told == {
                "count": len(told["tokens"]),
                "max_model_len": 256,
                "tokens": told["tokens"],
                "token_strs": None,
            }
            if told["tokens"]:
                await server.complete(prompt=prompt, add_special_tokens=add)
                assert server.engine.requests[-1].prompt == told["tokens"]


async def test_a_chat_has_the_tokens_that_an_answer_would_read(server: Running) -> None:
    chats: list[dict[str, Any]] = [
        {"messages": [QUESTION]},
        {"messages": [{"role": "system", "content": "Kurz."}, QUESTION], "add_generation_prompt": False},
        {"messages": [QUESTION, {"role": "assistant", "content": "Die"}], "continue_final_message": True},
    ]
    for chat in chats:
        await server.chat(**chat)
        prompt = server.engine.requests[-1].prompt
        assert (await post(server, "/tokenize", add_special_tokens=False, **chat))["tokens"] == prompt
        rendered = await post(server, "/v1/chat/completions/render", model="leo", max_tokens=7, **chat)
        assert (rendered["token_ids"], rendered["count"]) == (prompt, len(prompt))
        assert (rendered["max_tokens"], rendered["max_model_len"], rendered["model"]) == (7, 256, "leo")
    assert rendered["prompt"] == "<|im_start|>user\nHallo<|im_end|>\n<|im_start|>assistant\nDie"
    assert len(server.engine.requests) == len(chats), "neither asks the model"


async def test_functions_count_in_a_chats_tokens(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "wetter", "parameters": {"type": "object"}}}
    alone = await post(server, "/tokenize", messages=[QUESTION])
    told = await post(server, "/tokenize", messages=[QUESTION], tools=[tool])
    assert told["count"] > alone["count"]
    assert "wetter" in (await post(server, "/detokenize", tokens=told["tokens"]))["prompt"]
    answer = await server.http.post("/tokenize", json={"messages": [QUESTION], "tools": [tool, tool]})
    assert error_of(answer)["param"] == "tools[1].function.name"


async def test_a_rendered_chat_that_is_cut_tells_the_tokens_that_are_left(server: Running) -> None:
    chat = {"messages": [QUESTION], "truncate_prompt_tokens": 5}
    await server.chat(**chat)
    told = await post(server, "/v1/chat/completions/render", model="leo", **chat)
    assert told["token_ids"] == server.engine.requests[-1].prompt
    assert told["count"] == 5
    assert "Hallo" in told["prompt"]


async def test_tokens_are_told_as_the_vocabulary_spells_them(server: Running, tokenizer: Tokenizer) -> None:
    told = await post(server, "/tokenize", prompt="Die\n🦁", return_token_strs=True)
    spelled = told["token_strs"]
    assert [tokenizer.token_id(one) for one in spelled] == told["tokens"]
    assert spelled[0] == "<s>"
    assert spelled[1].startswith("▁")
    assert {"<0x0A>", "<0xF0>"} <= set(spelled)


async def test_what_was_tokenized_is_detokenized_to_the_same_text(server: Running) -> None:
    text = "Grüße aus Köln 🦁\n<|im_end|>"
    tokens = (await post(server, "/tokenize", prompt=text))["tokens"]
    assert await post(server, "/detokenize", tokens=tokens[1:]) == {"prompt": text}
    assert (await post(server, "/detokenize", tokens=tokens))["prompt"].startswith("<s>")
    assert await post(server, "/detokenize", model="leo-alias", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [QUESTION]}, "messages"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "mood": "good"}, "mood"),
        ("/tokenize", {"prompt": "a", "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("/tokenize", {"messages": [QUESTION], "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": [QUESTION], "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * 100_000}]}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [5, 100_000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "5"}, "tokens"),
        ("/v1/chat/completions/render", {"model": "leo", "messages": [QUESTION], "max_tokens": 250}, "messages"),
        ("/v1/chat/completions/render", {"model": "leo", "messages": [QUESTION], "temperature": 3}, "temperature"),
        ("/v1/chat/completions/render", {"model": "leo", "messages": [QUESTION], "n": 129}, "n"),
    ],
)
async def test_a_bad_body_is_refused_naming_the_field(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await server.http.post(path, json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize("path", PATHS)
async def test_they_are_keyed_bounded_and_served_like_the_others(start: Start, path: str) -> None:
    server = await start(api_key=["geheim"], max_body_bytes=1024)
    headers = {"Authorization": "Bearer geheim", "x-request-id": "meine"}
    assert error_of(await server.http.post(path, json=PATHS[path]))["code"] == "invalid_api_key"
    answer = await server.http.post(path, json=PATHS[path], headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "meine")
    for body, status in (({"model": "luchs"}, 404), ({"user": "x" * 1100}, 413)):
        assert (await server.http.post(path, json=PATHS[path] | body, headers=headers)).status_code == status
    assert (await server.http.post(path, content=b"{", headers=headers)).status_code == 400
    assert (await server.http.get(path, headers=headers)).status_code == 405
    server.engine.ready = None
    assert (await server.http.post(path, json=PATHS[path], headers=headers)).status_code == 503


@pytest.mark.parametrize("path", PATHS)
async def test_a_full_queue_of_answers_does_not_keep_them_from_telling(start: Start, path: str) -> None:
    server = await start(max_waiting_requests=1)
    server.engine.stats.waiting = server.engine.in_flight = 1
    assert (await server.chat()).status_code == 429
    assert (await server.http.post(path, json=PATHS[path])).status_code == 200

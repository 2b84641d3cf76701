"""Every error in OpenAI's shape, with the right status, code, parameter and headers."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import openai
import pytest

from leoserve.api.errors import MAX_ECHO, MAX_RETRY_AFTER, shorten, unavailable
from leoserve.engine.client import EngineRefused

from .conftest import Running, Start

QUESTION = {"role": "user", "content": "Hallo"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after checking what all errors have in common."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert len(response.content) < 2000
    return error


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hallo"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [QUESTION, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [QUESTION | {"mood": "good"}]}, "messages[0].mood"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ({"model": None}, "model"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": -0.01}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"n": 10**30}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a" * 1025]}, "stop[0]"),
    ({"stop": 7}, "stop"),
    ({"stop_token_ids": [5000]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [342]}, "allowed_token_ids"),
    ({"logit_bias": {"342": 1}}, "logit_bias"),
    ({"logit_bias": {"eins": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 100.5}}, "logit_bias.5"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": ["x" * 256] * 17}, "bad_words"),
    ({"messages": [QUESTION] * 4097}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}]}, "messages[0].content"),
    ({"logit_bias": {str(number): 1 for number in range(4097)}}, "logit_bias"),
    ({"allowed_token_ids": [1] * 65_537}, "allowed_token_ids"),
    ({"unheard_of": None}, "unheard_of"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -1, "max_tokens": 256}, "messages"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"best_of": 2}, "best_of"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"service_tier": "gold"}, "service_tier"),
]


async def test_what_a_chat_may_not_ask_is_a_400_that_names_the_field(server: Running) -> None:
    for body, param in BAD:
        answer = await server.chat(**body)
        error = error_of(answer)
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), body
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [342]}, "prompt"),
        ({"prompt": [10**20]}, "prompt[0]"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"echo": 1}, "echo"),
    ],
)
async def test_what_a_completion_may_not_ask_is_a_400_that_names_the_field(
    server: Running, body: dict[str, Any], param: str
) -> None:
    answer = await server.complete(**body)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert not server.engine.requests


async def test_what_has_no_effect_is_accepted(server: Running) -> None:
    answer = await server.chat(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="flex",
        safety_identifier="x",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        reasoning_effort="low",
        verbosity="high",
        prediction={"type": "content", "content": "x"},
        parallel_tool_calls=True,
        tools=[],
        tool_choice="auto",
        functions=[],
        response_format={"type": "text"},
        modalities=["text"],
        guided_json=None,
    )
    assert answer.status_code == 200
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await server.chat(tools=tools, tool_choice="none")).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"leo","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"leo","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"model":"leo","messages":[{"role":"user","content":"a"}],"temperature":1e400}',
        b'{"model":"leo","messages":[{"role":"user","content":"a"}],"min_p":-Infinity}',
        b'{"model":"leo","messages":[{"role":"user","content":"a"}],"seed":' + b"9" * 5000 + b"}",
        b'{"model":"leo","messages":[{"role":"user","content":"a\x00"}]}',
    ],
    ids=range(14),
)
async def test_what_is_no_proper_json_is_a_400(server: Running, raw: bytes) -> None:
    answer = await server.http.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    error_of(answer)


async def test_control_characters_in_a_message_are_text(server: Running) -> None:
    answer = await server.chat(messages=[{"role": "user", "content": "a\x00\x1b\u202e\ufeff"}])
    assert answer.status_code == 200


async def test_only_json_is_taken_so_that_no_foreign_page_can_post_unasked(server: Running) -> None:
    body = json.dumps({"model": "leo", "messages": [QUESTION]})
    for kind, status in (
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
    ):
        answer = await server.http.post("/v1/chat/completions", content=body, headers={"content-type": kind})
        assert answer.status_code == status
        if status != 200:
            error_of(answer)


async def test_several_faults_are_named_in_one_message(server: Running) -> None:
    error = error_of(await server.chat(temperature=3, top_p=2))
    assert "'temperature'" in error["message"]
    assert "'top_p'" in error["message"]
    assert error["param"] == "temperature"


async def test_an_unknown_model_is_a_404_that_names_the_served_ones(server: Running) -> None:
    for answer in (await server.chat(model="gpt" * 1000), await server.http.get("/v1/models/gpt")):
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "leo, leo-alias" in error["message"]
        assert len(error["message"]) < 2 * MAX_ECHO + 100
    assert (await server.chat(model="leo-alias")).json()["model"] == "leo-alias"


async def test_unknown_routes_and_wrong_methods_have_the_same_shape(server: Running) -> None:
    missing = await server.http.get("/v1/nothing%0Ahere")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_url")
    assert "\n" not in missing.json()["error"]["message"]
    wrong = await server.http.get("/v1/chat/completions")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_supported")
    assert wrong.headers["allow"] == "POST"
    asked = await server.http.options("/health")
    assert (asked.status_code, error_of(asked)["code"]) == (405, "method_not_supported")
    assert asked.headers["allow"] == "GET, HEAD"
    several = await server.http.request("PUT", "/v1/responses/resp_1")
    assert (several.status_code, several.headers["allow"]) == (405, "DELETE, GET, HEAD")


@pytest.mark.parametrize("path", ["chat", "completion"])
async def test_prompt_and_answer_over_the_context_are_refused_with_both_counts(server: Running, path: str) -> None:
    send = server.chat if path == "chat" else server.complete
    prompt = 26 if path == "chat" else 6
    assert (await send(max_tokens=256 - prompt)).status_code == 200
    answer = await send(max_tokens=257 - prompt)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 256 tokens" in error["message"]
    assert f"{prompt} in the" in error["message"]
    assert f"{257 - prompt} in the completion" in error["message"]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await server.openai.completions.create(model="leo", prompt="Hallo", max_tokens=251)


async def test_a_prompt_that_fills_the_context_is_refused(server: Running) -> None:
    answer = await server.chat(messages=[{"role": "user", "content": "Paris " * 200}])
    assert error_of(answer)["code"] == "context_length_exceeded"


async def test_a_text_that_cannot_fit_is_refused_without_tokenizing_it(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*args: object, **kwargs: object) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(server.context.tokenizer, "encode", encode)
    monkeypatch.setattr(server.context.tokenizer, "encode_prompt", encode)
    text = "ü" * 1_000_000
    for answer in (await server.complete(prompt=text), await server.chat(messages=[QUESTION | {"content": text}])):
        assert error_of(answer)["code"] == "context_length_exceeded"


async def test_more_log_probabilities_than_memory_should_hold_are_refused(server: Running) -> None:
    body = {"prompt": ["Hallo"] * 100, "n": 10, "logprobs": 20}
    answer = await server.complete(**body, max_tokens=200)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "logprobs")
    assert "4200000" in answer.json()["error"]["message"]
    assert (await server.complete(**body, max_tokens=4)).status_code == 200


async def test_lists_of_tokens_times_prompts_are_bounded(server: Running) -> None:
    body = {"prompt": ["Hallo"] * 1024, "allowed_token_ids": list(range(3, 340)), "max_tokens": 1}
    biases = {str(token): 1 for token in range(342)}
    words = [letter * 16 for letter in "abcdefghijklmnopqrstuvwxyzäöüß" * 8]
    answer = await server.complete(**body, logit_bias=biases, bad_words=words)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt")
    assert not server.engine.requests
    assert (await server.complete(**body)).status_code == 200


async def test_a_full_queue_is_a_429_with_both_retry_headers(server: Running) -> None:
    server.engine.refusal = EngineRefused("overloaded", "1024 answers are waiting already")
    for stream in (False, True):
        answer = await server.chat(stream=stream)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 2
        assert 500 <= int(answer.headers["retry-after-ms"]) <= 1500
    with pytest.raises(openai.RateLimitError):
        await server.openai.chat.completions.create(model="leo", messages=[{"role": "user", "content": "Hallo"}])


async def test_one_refused_prompt_refuses_the_request_and_aborts_the_others(server: Running) -> None:
    server.engine.refusal = EngineRefused("overloaded", "full")
    server.engine.accept = 3
    server.engine.pause_after = 1
    answer = await server.complete(prompt=["Hallo"] * 5)
    assert answer.status_code == 429
    assert server.engine.running == 0
    assert len(server.engine.aborts) == 3


async def test_what_never_fits_is_a_400(server: Running) -> None:
    server.engine.refusal = EngineRefused("never_fits", "prompt and answer take 999 tokens")
    answer = await server.chat()
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("state", ["loading", "restarting", "draining", "failed"])
async def test_a_server_that_cannot_answer_now_says_when_to_come_back(server: Running, state: Any) -> None:
    server.engine.state = state
    if state == "loading":
        server.engine.ready = None
    answer = await server.chat()
    assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
    assert 1 <= int(answer.headers["retry-after"]) <= MAX_RETRY_AFTER
    assert (await server.http.get("/ready")).status_code == 503


async def test_the_unexpected_is_a_500_without_its_cause(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(server.context.template, "render", fail)
    answer = await server.chat()
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


CONTRADICTION = "allowed_token_ids, bad_words, min_tokens and logit_bias leave no token to choose"


async def test_parameters_that_leave_no_token_are_the_clients_fault(server: Running) -> None:
    server.engine.error, server.engine.error_kind = CONTRADICTION, "invalid"
    for stream in (False, True):
        answer = await server.chat(stream=stream)
        assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
        assert CONTRADICTION in answer.json()["error"]["message"]
    server.engine.error_after = 1
    *_, event, done = await server.events()
    assert (event["error"]["type"], done) == ("invalid_request_error", "[DONE]")
    server.engine.error_kind = "internal"
    assert (await server.chat()).status_code == 500


async def test_a_grammar_that_cannot_be_followed_is_the_clients_fault_by_its_field(server: Running) -> None:
    server.engine.error, server.engine.error_kind = "its grammar is too much work: too many items", "grammar"
    answer = await server.chat(structured_outputs={"regex": "a+"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "structured_outputs.regex")
    assert "too much work" in answer.json()["error"]["message"]


async def test_a_large_body_is_parsed_off_the_event_loop(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from leoserve.api.protocol import body

    where = []
    parse = body.parse

    def noting(*args: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return parse(*args)

    monkeypatch.setattr(body, "parse", noting)
    for size, status in ((10, 200), (100_000, 200), (100_000, 400)):
        assert (await server.chat(user="x" * size, **({} if status == 200 else {"n": 0}))).status_code == status
    assert where == [True, False, False]


async def test_unknown_fields_are_let_pass_with_a_warning_where_the_settings_say_so(start: Start) -> None:
    server = await start(unknown_fields="warn")
    messages = [QUESTION | {"stimmung": "gut"}]
    for stream in (False, True):
        answer = await server.chat(messages=messages, neü=1, stream=stream)
        assert answer.status_code == 200
        assert answer.headers["x-leoserve-warning"] == "unknown fields without effect: ne?, messages[0].stimmung"
    assert "x-leoserve-warning" not in (await server.chat()).headers


def test_a_wait_is_never_longer_than_clients_bear() -> None:
    assert unavailable("restarting", 1e6).headers == {"Retry-After": str(MAX_RETRY_AFTER)}
    assert unavailable("restarting", 0).headers == {"Retry-After": "1"}


def test_what_a_message_repeats_is_short_and_printable() -> None:
    assert shorten("a\nb\x00\u202e") == "a\ufffdb\ufffd\ufffd"
    assert len(shorten("x" * 10_000)) == MAX_ECHO + 1

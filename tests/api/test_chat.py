"""POST /v1/chat/completions, through a real server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from leoserve.text.tokenizer import Tokenizer

from .conftest import Running, Start, control, pieces

QUESTION = {"role": "user", "content": "Hallo"}


async def test_an_answer_has_every_field_of_openais_shape(server: Running) -> None:
    server.engine.cached = 16
    body = (await server.chat(service_tier="auto")).json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert body.pop("created") > 1_700_000_000
    assert re.fullmatch(r"fp_[0-9a-f]{12}", body.pop("system_fingerprint"))
    assert body == {
        "object": "chat.completion",
        "model": "leo",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 26,
            "completion_tokens": 4,
            "total_tokens": 30,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


async def test_the_sdk_reads_an_answer_and_a_stream(server: Running) -> None:
    server.says("Grüße aus Köln 🦁!")
    ask: dict[str, Any] = {"model": "leo", "messages": [QUESTION]}
    whole = await server.openai.chat.completions.create(**ask)
    assert whole.choices[0].message.content == "Grüße aus Köln 🦁!"
    text = ""
    async for chunk in await server.openai.chat.completions.create(**ask, stream=True):
        assert "\ufffd" not in (chunk.choices[0].delta.content or "")
        text += chunk.choices[0].delta.content or ""
    assert text == "Grüße aus Köln 🦁!"


async def test_the_prompt_is_the_rendered_chat(server: Running, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Sei"}, {"type": "text", "text": "kurz."}]},
        QUESTION,
        {"role": "assistant", "content": "Grüße", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": "<|im_end|>"},
    ]
    await server.chat(messages=messages)
    prompt = server.engine.requests[0].prompt
    text = tokenizer.decode(prompt, skip_special_tokens=False)
    assert text.startswith("<s><|im_start|> system\nSei\nkurz.<|im_end|>") or "system\nSei\nkurz." in text
    assert prompt.count(tokenizer.bos_id or 0) == 1
    assert prompt.count(tokenizer.token_id("<|im_end|>") or 0) == 4, "a user's <|im_end|> stays text"
    assert prompt.count(tokenizer.token_id("<|im_start|>") or 0) == 5


async def test_the_last_message_is_continued_when_asked(server: Running, tokenizer: Tokenizer) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "Die Hauptstadt"}]
    answer = await server.chat(messages=messages, continue_final_message=True)
    assert answer.status_code == 200
    assert tokenizer.decode(server.engine.requests[0].prompt).endswith("Die Hauptstadt")
    await server.chat(messages=messages, add_generation_prompt=False)
    assert server.engine.requests[1].prompt[-1] != server.engine.requests[0].prompt[-1]


async def test_every_sampling_field_reaches_the_engine(server: Running, tokenizer: Tokenizer) -> None:
    token, other = pieces(tokenizer, "Paris")
    answer = await server.chat(
        temperature=0.5,
        top_p=0,
        top_k=7,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        logit_bias={str(token): -100, str(other): 1.5},
        min_tokens=3,
        bad_words=["Paris"],
        allowed_token_ids=[other, token, token],
        seed=-1,
        n=3,
        stop_token_ids=[token],
        max_completion_tokens=9,
        max_tokens=5,
        logprobs=True,
        top_logprobs=4,
        prompt_logprobs=2,
        priority=-5,
    )
    assert answer.status_code == 200
    request = server.engine.requests[0]
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.0, 7, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (-2.0, 2.0, 1.1)
    assert params.logit_bias == {token: -100.0, other: 1.5}
    assert params.allowed_token_ids == tuple(sorted((token, other)))
    assert params.bad_words == tuple(map(tuple, tokenizer.encode_bad_word("Paris")))
    assert (params.min_tokens, params.max_tokens, params.n, params.seed) == (3, 9, 3, 2**64 - 1)
    assert set(params.stop_token_ids) == {token, *tokenizer.stop_ids}
    assert (params.logprobs, params.prompt_logprobs, request.priority) == (4, 2, -5)


async def test_null_and_absence_mean_the_default(server: Running) -> None:
    nulls = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "max_tokens", "logprobs", "stream", "tools")
    await server.chat(seed=1)
    await server.chat(**dict.fromkeys(nulls), stream_options=None)
    first, second = (request.params for request in server.engine.requests)
    assert first.temperature == second.temperature == 1.0
    assert first.top_p == second.top_p == 1.0
    assert first.n == second.n == 1
    assert first.max_tokens == second.max_tokens == 256 - 26, "to the context's end"


async def test_ignore_eos_leaves_only_the_clients_stop_tokens(server: Running) -> None:
    await server.chat(ignore_eos=True, stop_token_ids=[300], max_tokens=2)
    assert server.engine.requests[0].params.stop_token_ids == (300,)


async def test_seeds_are_drawn_anew_for_each_request_from_the_servers_own(start: Start) -> None:
    drawn = []
    for _ in range(2):
        server = await start(seed=5)
        await server.chat()
        await server.chat()
        drawn.append([request.params.seed for request in server.engine.requests])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


async def test_choices_have_their_own_answers_and_ends(server: Running) -> None:
    server.says("Paris.", "Die Hauptstadt", "Grüße aus Köln")
    answer = (await server.chat(n=3, max_tokens=4)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["choices"][0]["message"]["content"] == "Paris."
    assert "Die Hauptstadt".startswith(answer["choices"][1]["message"]["content"])
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length", "length"]
    assert len(server.engine.requests) == 1, "the choices share one prompt"


async def test_logprobs_tell_each_shown_token_once_with_its_bytes(server: Running, tokenizer: Tokenizer) -> None:
    server.says("Köln 🦁")
    answer = (await server.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]
    told = answer["logprobs"]["content"]
    assert answer["logprobs"]["refusal"] is None
    assert bytes(byte for token in told for byte in token["bytes"]).decode() == "Köln 🦁"
    assert [token["token"] for token in told] == [tokenizer.token_text(i) for i in pieces(tokenizer, "Köln 🦁")]
    assert told[-1]["token"].startswith("bytes:\\x")
    for token in told:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(token["top_logprobs"]) == 2
        assert set(token["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    assert (await server.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_streamed_logprobs_are_those_of_the_whole_answer(server: Running) -> None:
    server.says("Grüße aus Köln, schön 🦁 und groß.")
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "stop": [" groß"], "return_token_ids": False}
    whole = (await server.chat(**options)).json()["choices"][0]
    chunks = (await server.events(**options))[:-1]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    told = [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert text == whole["message"]["content"] == "Grüße aus Köln, schön 🦁 und"
    assert told == whole["logprobs"]["content"]
    assert bytes(byte for token in told for byte in token["bytes"]).decode() == text


async def test_token_ids_are_returned_with_the_one_that_ended_the_answer(server: Running, tokenizer: Tokenizer) -> None:
    answer = (await server.chat(return_token_ids=True, logprobs=True)).json()
    expected = [*pieces(tokenizer, "Paris."), tokenizer.token_id("<|im_end|>")]
    assert answer["prompt_token_ids"] == server.engine.requests[0].prompt
    assert answer["choices"][0]["token_ids"] == expected
    assert len(answer["choices"][0]["logprobs"]["content"]) == len(expected)
    chunks = (await server.events(return_token_ids=True))[:-1]
    assert chunks[0]["prompt_token_ids"] == server.engine.requests[1].prompt
    assert [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])] == expected


async def test_prompt_logprobs_tell_every_token_but_the_first(server: Running) -> None:
    answer = (await server.chat(prompt_logprobs=2)).json()
    prompt = server.engine.requests[0].prompt
    told = answer["prompt_logprobs"]
    assert told[0] is None
    assert [next(iter(entry)) for entry in told[1:]] == [str(token) for token in prompt[1:]]
    assert all(set(entry) >= {"logprob", "rank", "decoded_token"} for entry in told[1].values())


async def test_stop_strings_end_the_answer_and_abort_the_engines_work(server: Running) -> None:
    server.says("Die Hauptstadt von Frankreich ist Paris.")
    answer = (await server.chat(stop="von Frank")).json()
    assert answer["choices"][0]["message"]["content"] == "Die Hauptstadt "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.engine.aborts == [(answer["id"], 0)]
    included = (await server.chat(stop=["Paris", "von Frank"], include_stop_str_in_output=True)).json()
    assert included["choices"][0]["message"]["content"] == "Die Hauptstadt von Frank"


@pytest.mark.parametrize("stop", ["\n\n", "von Köln", "Frankreich!"])
async def test_text_that_only_began_like_a_stop_string_arrives_in_full(server: Running, stop: str) -> None:
    server.says("Die Hauptstadt von Frankreich\n")
    answer = (await server.chat(stop=stop)).json()
    assert answer["choices"][0]["message"]["content"] == "Die Hauptstadt von Frankreich\n"


async def test_a_stop_token_is_shown_only_when_included(server: Running, tokenizer: Tokenizer) -> None:
    paris = pieces(tokenizer, "Paris")
    hidden = (await server.chat(stop_token_ids=[paris[1]])).json()
    shown = (await server.chat(stop_token_ids=[paris[1]], include_stop_str_in_output=True)).json()
    assert hidden["choices"][0]["message"]["content"] == tokenizer.token_text(paris[0])
    assert shown["choices"][0]["message"]["content"] == "Paris"
    assert hidden["usage"]["completion_tokens"] == shown["usage"]["completion_tokens"] == 2


async def test_stop_strings_are_not_looked_for_before_min_tokens(server: Running) -> None:
    server.says("Paris. Paris. Paris.")
    early = (await server.chat(stop=".")).json()["choices"][0]["message"]["content"]
    late = (await server.chat(stop=".", min_tokens=5)).json()["choices"][0]["message"]["content"]
    assert early == "Paris"
    assert late.startswith("Paris. ")
    assert not late.endswith(".")


async def test_control_tokens_are_shown_when_asked_for(server: Running, tokenizer: Tokenizer) -> None:
    ids = [*pieces(tokenizer, "Paris"), control(tokenizer, "</s>")]
    server.engine.answer = lambda request, index: ids
    for skip, text in ((True, "Paris"), (False, "Paris</s>")):
        answer = await server.chat(skip_special_tokens=skip, ignore_eos=True, stop_token_ids=[300], max_tokens=3)
        assert answer.json()["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("keep", [5, -1])
async def test_a_long_prompt_is_cut_to_its_end_behind_the_bos(server: Running, tokenizer: Tokenizer, keep: int) -> None:
    messages = [{"role": "user", "content": "Paris " * 300}]
    answer = await server.chat(messages=messages, truncate_prompt_tokens=keep, max_tokens=6)
    assert answer.status_code == 200
    prompt = server.engine.requests[0].prompt
    assert len(prompt) == (5 if keep == 5 else 250)
    assert prompt[0] == tokenizer.bos_id
    assert prompt[1] != tokenizer.bos_id


async def test_a_chat_needs_a_template(start: Start) -> None:
    server = await start()
    server.context.template.missing = "this model has no chat template"
    answer = await server.chat()
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


async def test_template_variables_are_those_the_template_knows(start: Start) -> None:
    template = "{{ greeting }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    server = await start(chat_template=template)
    assert (await server.chat(chat_template_kwargs={"greeting": "Moin "})).status_code == 200
    assert "Moin" in server.context.tokenizer.decode(server.engine.requests[0].prompt)
    for name, value in (("messages", "x"), ("bos_token", "x"), ("strange", "x"), ("greeting", ["x"])):
        answer = await server.chat(chat_template_kwargs={name: value})
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"].startswith("chat_template_kwargs")


async def test_cached_prompts_are_shared_only_within_a_salt(server: Running) -> None:
    for salt in (None, "a", "b", "a"):
        await server.chat(cache_salt=salt)
    salts = [request.salt for request in server.engine.requests]
    assert len(set(salts)) == 3
    assert salts[1] == salts[3]


async def test_equal_servers_have_equal_fingerprints(start: Start) -> None:
    first, second = [(await (await start()).chat()).json()["system_fingerprint"] for _ in range(2)]
    assert first == second

"""Answers of both endpoints, whole and streamed, brought to one form and held to what they must be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from openai import BaseModel
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from leoserve.text.tokenizer import Tokenizer

Body = Mapping[str, Any]
Json = dict[str, Any]

HEAD = {"id", "object", "created", "model", "service_tier", "system_fingerprint"}
# Fields that OpenAI's models do not have. The last three come only when they are asked for.
EXTENSIONS = {"service_tier", "obfuscation", "token_ids", "prompt_token_ids", "prompt_logprobs"}
COMPLETION_LOGPROBS = ("text_offset", "token_logprobs", "tokens", "top_logprobs")


def is_chat(body: Body) -> bool:
    return "messages" in body


def events(text: str) -> list[Json]:
    """The chunks of a stream, which has nothing else but [DONE] at its end."""
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks if not chunk.startswith(":")]


def whole_choices(body: Body, answer: Json) -> list[Json]:
    """The choices of an answer: text, finish, logprobs and what else they tell."""
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    choices = []
    for choice in answer["choices"]:
        text = choice["message"]["content"] if is_chat(body) else choice["text"]
        told = {"text": text, "finish": choice["finish_reason"], "logprobs": choice["logprobs"]}
        if is_chat(body):
            assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
        choices.append(told | {name: choice[name] for name in EXTENSIONS & set(choice)})
    return choices


def streamed_choices(body: Body, chunks: list[Json]) -> list[Json]:
    """The same, put together from the chunks of a stream, whose order is checked."""
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            new = piece["index"] not in choices
            choice = choices.setdefault(piece["index"], {"text": "", "finish": None, "logprobs": None})
            assert choice["finish"] is None, "nothing comes after the end"
            if is_chat(body):
                assert (piece["delta"].get("role") == "assistant") == new
            text = piece["delta"].get("content", "") if is_chat(body) else piece["text"]
            if piece["finish_reason"] is not None:
                assert text == ""
                assert piece["logprobs"] is None
                assert not is_chat(body) or piece["delta"] == {}
            choice["text"] += text
            choice["finish"] = piece["finish_reason"]
            choice["logprobs"] = joined(choice["logprobs"], piece["logprobs"])
            if "token_ids" in piece:
                choice["token_ids"] = choice.get("token_ids", []) + piece["token_ids"]
            choice |= {name: piece[name] for name in ("prompt_token_ids", "prompt_logprobs") if name in piece}
    return [choices[index] for index in range(len(choices))]


def joined(sofar: Json | None, more: Json | None) -> Json | None:
    if sofar is None or more is None:
        return sofar or more
    return {name: value if value is None else sofar[name] + value for name, value in more.items()}


def check_shape(body: Body, answer: Json) -> None:
    """Assert that OpenAI's SDK knows every field, and that all of them are there."""
    model: type[BaseModel] = ChatCompletion if is_chat(body) else Completion
    assert set(answer) - EXTENSIONS == {*HEAD, "choices", "usage"} - {"service_tier"}
    check_model(model.model_validate(without_nulls(answer)))
    for choice in answer["choices"]:
        expected = {"index", "finish_reason", "logprobs", *({"message"} if is_chat(body) else {"text"})}
        assert set(choice) - EXTENSIONS == expected
    check_asked(body, answer if is_chat(body) else answer["choices"][0], answer["choices"][0])
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0


def check_stream_shape(body: Body, chunks: list[Json]) -> None:
    """The same for every chunk of a stream."""
    model: type[BaseModel] = ChatCompletionChunk if is_chat(body) else Completion
    options = body.get("stream_options") or {}
    counted = options.get("include_usage") or options.get("continuous_usage_stats")
    for chunk in chunks:
        assert {name: chunk[name] for name in HEAD} == {name: chunks[0][name] for name in HEAD}
        assert ("usage" in chunk) == bool(counted)
        assert ("obfuscation" in chunk) == bool(options.get("include_obfuscation") and chunk["choices"])
        plain = without_nulls(chunk)
        for choice in plain["choices"]:
            if not is_chat(body):
                choice["finish_reason"] = choice["finish_reason"] or "stop"  # null until the end, unlike in the model
        check_model(model.model_validate(plain))
    first = next(chunk for chunk in chunks if chunk["choices"][0]["index"] == 0)
    check_asked(body, first if is_chat(body) else first["choices"][0], None)
    last = chunks[-1]
    assert bool(options.get("include_usage")) == (last["choices"] == [])
    if options.get("include_usage"):
        assert last["usage"]["completion_tokens"] >= 0
        rest = [chunk["usage"] for chunk in chunks[:-1]]
        assert all(rest) if options.get("continuous_usage_stats") else not any(rest)


def check_asked(body: Body, about_prompt: Json, choice: Json | None) -> None:
    """Extensions are there exactly when they were asked for."""
    assert ("prompt_token_ids" in about_prompt) == bool(body.get("return_token_ids"))
    assert ("prompt_logprobs" in about_prompt) == (body.get("prompt_logprobs") is not None)
    if choice is not None:
        assert ("token_ids" in choice) == bool(body.get("return_token_ids"))


def without_nulls(answer: Json) -> Json:
    """A copy whose scores of a prompt's first token, which is null in OpenAI's own answers, fit the SDK's types."""
    copy: Json = json.loads(json.dumps(answer))
    for choice in copy["choices"]:
        told = choice.get("logprobs")
        if told and "token_logprobs" in told:
            told["token_logprobs"] = [value or 0.0 for value in told["token_logprobs"]]
            told["top_logprobs"] = [value or {} for value in told["top_logprobs"]]
    return copy


def check_model(value: Any) -> None:
    """Assert that no object has a field that neither its model nor we have documented."""
    if isinstance(value, BaseModel):
        assert set(value.model_extra or {}) <= EXTENSIONS, type(value)
        required = {name for name, field in type(value).model_fields.items() if field.is_required()}
        assert required <= value.model_fields_set
        for name in value.model_fields_set - set(value.model_extra or {}):
            check_model(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            check_model(item)
    assert not get_args(value)


class Checker:
    """Holds the choices of one answer to the request, by the served model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, body: Body, prompts: list[str | list[int]]) -> None:
        self.tokenizer = tokenizer
        self.body = body
        self.prompts = prompts
        self.stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        self.stop_ids = {*body.get("stop_token_ids", []), *(() if body.get("ignore_eos") else tokenizer.stop_ids)}

    def check(self, choices: list[Json], usage: Json | None) -> None:
        n = self.body.get("n", 1)
        assert len(choices) == n * len(self.prompts)
        for number, choice in enumerate(choices):
            self.check_choice(choice, number // n)
        if usage is not None:
            self.check_usage(choices, usage)

    def check_usage(self, choices: list[Json], usage: Json) -> None:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] <= self.generated * len(choices) * self.body["max_tokens"]
        if "token_ids" in choices[0]:
            told = sum(len(choice["token_ids"]) for choice in choices)
            assert usage["completion_tokens"] == told if self.generated == 1 else usage["completion_tokens"] >= told
        if "prompt_token_ids" in choices[0]:
            each = choices[:: self.body.get("n", 1)]
            assert usage["prompt_tokens"] == sum(len(choice["prompt_token_ids"]) for choice in each)
            most = self.body.get("truncate_prompt_tokens", -1)
            assert most < 0 or all(1 <= len(choice["prompt_token_ids"]) <= most for choice in each)

    @property
    def generated(self) -> float:
        """Answers that were generated for each that was returned."""
        n: int = self.body.get("n", 1)
        return (self.body.get("best_of") or n) / n

    def check_choice(self, choice: Json, prompt: int) -> None:
        text: str = choice["text"]
        echo = self.echo(choice, prompt)
        assert text.startswith(echo)
        answer = text[len(echo) :]
        assert choice["finish"] in ("stop", "length")
        if not self.body.get("include_stop_str_in_output") and not self.body.get("min_tokens"):
            assert not any(stop in answer for stop in self.stops)
        if "token_ids" in choice:
            self.check_tokens(choice, answer)
        if choice["logprobs"] is not None:
            if is_chat(self.body):
                self.check_chat_logprobs(choice)
            else:
                self.check_completion_logprobs(choice, text, len(echo))
        else:
            assert self.body.get("logprobs") in (None, False)
        if "prompt_logprobs" in choice:
            self.check_prompt_logprobs(choice)

    def echo(self, choice: Json, prompt: int) -> str:
        given: Any = self.prompts[prompt]
        if not self.body.get("echo"):
            return ""
        if isinstance(given, str) and self.body.get("truncate_prompt_tokens") is None:
            return given
        return self.tokenizer.decode(choice.get("prompt_token_ids", given))

    def check_tokens(self, choice: Json, answer: str) -> None:
        ids: list[int] = choice["token_ids"]
        assert len(ids) <= self.body["max_tokens"]
        ended = bool(ids) and ids[-1] in self.stop_ids
        assert not self.stop_ids & set(ids[: -1 if ended else None])
        if self.body.get("allowed_token_ids") is not None:
            assert set(ids) <= set(self.body["allowed_token_ids"])
        for word in self.body.get("bad_words", []):
            for banned in self.tokenizer.encode_bad_word(word):
                assert banned not in [ids[at : at + len(banned)] for at in range(len(ids))]
        for token, bias in self.body.get("logit_bias", {}).items():
            assert bias > -100 or int(token) not in ids
        shown = ids[:-1] if ended and not self.body.get("include_stop_str_in_output") else ids
        vocabulary = self.tokenizer.vocabulary
        pieces = vocabulary.shown if self.body.get("skip_special_tokens", True) else vocabulary.pieces
        spoken = b"".join(pieces[token] for token in shown).decode(errors=vocabulary.invalid_bytes)
        silent = set(choice["prompt_token_ids"]) <= self.tokenizer.special_ids
        if silent and self.body.get("skip_special_tokens", True):
            spoken = spoken.removeprefix(" ")  # the answer is the beginning of the text
        assert spoken.startswith(answer)
        if choice["finish"] == "length":
            assert (len(ids), answer) == (self.body["max_tokens"], spoken)
            return
        assert len(ids) >= self.body.get("min_tokens", 0)
        if not ended or answer != spoken:
            included = self.body.get("include_stop_str_in_output")
            assert any(answer.endswith(s) if included else spoken[len(answer) :].startswith(s) for s in self.stops)

    def check_chat_logprobs(self, choice: Json) -> None:
        content = choice["logprobs"]["content"]
        assert choice["logprobs"]["refusal"] is None
        for entry in content:
            assert isinstance(entry["token"], str)
            assert entry["logprob"] <= 0
            self.check_top([each["logprob"] for each in entry["top_logprobs"]], self.body.get("top_logprobs") or 0)
        said = b"".join(bytes(entry["bytes"]) for entry in content)
        assert said.decode(errors="replace").startswith(choice["text"]) or "\ufffd" in said.decode(errors="replace")
        if "token_ids" in choice:
            names = [self.tokenizer.token_text(token) for token in choice["token_ids"]]
            assert [entry["token"] for entry in content] == names

    def check_completion_logprobs(self, choice: Json, text: str, echo: int) -> None:
        told = choice["logprobs"]
        assert tuple(told) == COMPLETION_LOGPROBS
        tokens, offsets, tops = told["tokens"], told["text_offset"], told["top_logprobs"]
        assert len(tokens) == len(offsets) == len(tops) == len(told["token_logprobs"])
        begin = len(tokens)
        if "token_ids" in choice:
            ids = [*(choice["prompt_token_ids"] if self.body.get("echo") else ()), *choice["token_ids"]]
            assert tokens == [self.tokenizer.token_text(token) for token in ids]
            begin -= len(choice["token_ids"])
        assert offsets == sorted(offsets)
        for number, (token, offset) in enumerate(zip(tokens, offsets, strict=True)):
            end = offsets[number + 1] if number + 1 < len(offsets) else len(text)
            if number >= begin and end > offset and not token.startswith("bytes:") and "\ufffd" not in text[offset:end]:
                assert text[offset:end] == token[: end - offset]
        for number, (value, top) in enumerate(zip(told["token_logprobs"], tops, strict=True)):
            if value is None:
                assert (number, top, self.body["echo"]) == (0, None, True)
                continue
            assert value <= 0
            assert tokens[number] in top
            assert len(top) <= self.body["logprobs"] + 1
            assert max(top.values()) >= value
            self.check_top(list(top.values())[: self.body["logprobs"]], None)

    def check_prompt_logprobs(self, choice: Json) -> None:
        told: list[Json | None] = choice["prompt_logprobs"]
        assert told[0] is None
        tokens = choice.get("prompt_token_ids")
        assert tokens is None or len(tokens) == len(told)
        for number, entries in enumerate(told[1:], start=1):
            assert entries is not None
            assert self.body["prompt_logprobs"] <= len(entries) <= self.body["prompt_logprobs"] + 1
            assert tokens is None or str(tokens[number]) in entries
            ordered = sorted(entries.values(), key=lambda entry: entry["rank"])
            self.check_top([entry["logprob"] for entry in ordered], None)

    def check_top(self, values: list[float], count: int | None) -> None:
        assert count is None or len(values) == count
        assert values == sorted(values, reverse=True)


def told_by(choices: list[Json]) -> Iterator[tuple[Any, ...]]:
    """What must be the same of two answers to one request; log-probabilities are compared by themselves."""
    for choice in choices:
        yield tuple((name, value) for name, value in sorted(choice.items()) if "logprobs" not in name)


def numbers(value: Any) -> Iterator[float | str | None]:
    """Everything in a JSON value, in order."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    else:
        yield value

"""Answers of the three endpoints, whole and streamed, brought to one form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.end_to_end.answers import events

Body = dict[str, Any]
Json = Any
LOGPROBS = "message.output_text.logprobs"


@dataclass
class Choice:
    """One answer. `text`: beside the calls, None where there is none; `calls`: name and arguments of each."""

    text: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str | None = None
    logprobs: Json = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: Json = None

    @property
    def said(self) -> tuple[str, list[tuple[str, str]], str | None]:
        """What it says, whatever else was asked for."""
        return self.text or "", self.calls, self.finish


@dataclass
class Told:
    choices: list[Choice]
    usage: Json = None  # without what depends on the cache
    error: Json = None  # that came in the stream, instead of its end


def plain_usage(usage: Json) -> Json:
    """Without what depends on the requests before."""
    if usage is None:
        return None
    details = {"prompt_tokens_details", "input_tokens_details"}
    return {name: value for name, value in usage.items() if name not in details}


def whole(path: str, answer: Json) -> Told:
    if path == "/v1/responses":
        return Told([response_choice(answer)], plain_usage(answer["usage"]))
    chat = path == "/v1/chat/completions"
    choices = []
    for index, its in enumerate(answer["choices"]):
        assert its["index"] == index
        about = its if "prompt_token_ids" in its or "prompt_logprobs" in its else answer
        choice = Choice(finish=its["finish_reason"], logprobs=its["logprobs"], token_ids=its.get("token_ids"))
        choice.prompt_token_ids, choice.prompt_logprobs = about.get("prompt_token_ids"), about.get("prompt_logprobs")
        if chat:
            message = its["message"]
            assert message["role"] == "assistant"
            assert message["refusal"] is None
            choice.text, choice.calls = message["content"], calls_of(message)
            assert choice.text is not None or choice.calls
        else:
            choice.text = its["text"]
        choices.append(choice)
    return Told(choices, plain_usage(answer["usage"]))


def calls_of(message: Json) -> list[tuple[str, str]]:
    if message.get("function_call"):
        assert "tool_calls" not in message
        return [(message["function_call"]["name"], message["function_call"]["arguments"])]
    calls = message.get("tool_calls") or []
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["type"] == "function" for call in calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def response_choice(answer: Json) -> Choice:
    finish = {"completed": "stop", "incomplete": "length"}[answer["status"]]
    assert (answer["incomplete_details"] is None) == (finish == "stop")
    choice = Choice(finish=finish, logprobs=[])
    for item in answer["output"]:
        if item["type"] == "function_call":
            choice.calls.append((item["name"], item["arguments"]))
        else:
            assert item["type"] == "message"
            (part,) = item["content"]
            choice.text = (choice.text or "") + part["text"]
            choice.logprobs += part["logprobs"]
    return choice


def streamed(path: str, text: str, usage_wanted: bool) -> Told:
    if path == "/v1/responses":
        return streamed_response(text)
    chat = path == "/v1/chat/completions"
    told = Told([])
    choices: dict[int, Choice] = {}
    chunks = events(text)
    if "error" in chunks[-1]:
        told.error = chunks.pop()
    for chunk in chunks:
        if not chunk["choices"]:
            assert chunk is chunks[-1]
            assert usage_wanted
            told.usage = plain_usage(chunk["usage"])
        for piece in chunk["choices"]:
            add(choices, chunk, piece, chat)
    assert told.error or sorted(choices) == list(range(len(choices)))
    assert told.error or all(choice.finish for choice in choices.values())
    told.choices = [choices[index] for index in sorted(choices)]
    if chat and told.choices:  # a chat tells of its prompt once
        first = told.choices[0]
        for choice in told.choices[1:]:
            choice.prompt_token_ids, choice.prompt_logprobs = first.prompt_token_ids, first.prompt_logprobs
    return told


def add(choices: dict[int, Choice], chunk: Json, piece: Json, chat: bool) -> None:
    """Add one chunk of one choice to it."""
    new = piece["index"] not in choices
    choice = choices.setdefault(piece["index"], Choice())
    assert choice.finish is None, "nothing comes after the end"
    about = chunk if chat else piece
    for name in ("prompt_token_ids", "prompt_logprobs"):
        if name in about:
            setattr(choice, name, about[name])
    if chat:
        delta = piece["delta"]
        assert ("role" in delta) == new
        if delta.get("content") is not None:
            choice.text = (choice.text or "") + delta["content"]
        for call in delta.get("tool_calls") or ():
            add_call(choice, call["index"], call)
        if "function_call" in delta:
            add_call(choice, 0, {"function": delta["function_call"]})
    else:
        choice.text = (choice.text or "") + piece["text"]
    if piece["finish_reason"] is not None:
        assert piece["delta"] == {} if chat else piece["text"] == ""
    choice.finish = piece["finish_reason"]
    if piece["logprobs"] is not None:
        sofar = choice.logprobs or dict.fromkeys(piece["logprobs"])
        choice.logprobs = {
            name: sofar[name] if more is None else (sofar[name] or []) + more
            for name, more in piece["logprobs"].items()
        }
    if "token_ids" in piece:
        choice.token_ids = (choice.token_ids or []) + piece["token_ids"]


def add_call(choice: Choice, index: int, piece: Json) -> None:
    function = piece["function"]
    if "name" in function:
        assert index == len(choice.calls)
        choice.calls.append((function["name"], ""))
    name, arguments = choice.calls[index]
    choice.calls[index] = (name, arguments + function.get("arguments", ""))


def streamed_response(text: str) -> Told:
    """The response that a stream ends with, once all events before it have said the same."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    found = []
    for number, block in enumerate(blocks):
        head, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    last = found[-1]
    if last["type"] == "response.failed":
        error = found[-2]
        assert error["type"] == "error"
        return Told([], error=error)
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    assert last["type"] in ("response.completed", "response.incomplete")
    check_items(found[2:-1], last["response"]["output"])
    return Told([response_choice(last["response"])], plain_usage(last["response"]["usage"]))


def check_items(found: list[Json], output: list[Json]) -> None:
    """Every item is told in events that say what stands in the end."""
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == output
    for place, item in enumerate(output):
        about = [event for event in found if event["output_index"] == place]
        kinds = [event["type"].removeprefix("response.") for event in about]
        assert kinds[0] == "output_item.added"
        assert kinds[-1] == "output_item.done"
        deltas = "".join(event["delta"] for event in about if event["type"].endswith(".delta"))
        if item["type"] == "function_call":
            assert set(kinds[1:-2]) <= {"function_call_arguments.delta"}
            assert deltas == item["arguments"] == about[-2]["arguments"]
            continue
        (part,) = item["content"]
        assert kinds[1] == "content_part.added"
        assert set(kinds[2:-3]) <= {"output_text.delta"}
        assert kinds[-3:-1] == ["output_text.done", "content_part.done"]
        logprobs = [entry for event in about if event["type"].endswith("text.delta") for entry in event["logprobs"]]
        assert (deltas, logprobs) == (part["text"], part["logprobs"])
        assert (about[-3]["text"], about[-3]["logprobs"], about[-2]["part"]) == (deltas, logprobs, part)

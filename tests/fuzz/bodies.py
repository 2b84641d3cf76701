"""Bodies of requests: every field of the pydantic models, in any combination that their types allow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from leoserve.api.protocol.chat import ChatRequest, ContentPart, Message
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.responses import CallItem, FunctionTool, MessageItem, ReasoningItem, ResponsesRequest
from leoserve.api.protocol.tools import AllowedChoice, FunctionDefinition, NamedChoice
from leoserve.text.tokenizer import Tokenizer

from .fields import TEXTS, Known, Values, field_values, objects, spelled
from .forms import GRAMMARS, PARAMETERS, REGEXES, ROOTS

Body = dict[str, Any]
MODELS: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
}
MODEL = "zufall"
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FEW = st.integers(1, 12)  # tokens: most answers are short, for the tests' own time
CALLED = st.sampled_from(["f", "g", "wetter"])
SAID = {"role": "assistant", "content": "Ich mein"}
ASKED = {"role": "user", "content": "Wie ist das Wetter?"}


def schema_field(schemas: Values) -> Values:
    return st.one_of(
        schemas, schemas, schemas, st.none(), st.sampled_from([{}, {"type": "object"}, {"type": "nothing"}])
    )


def functions() -> Values:
    known = {"name": CALLED, "parameters": schema_field(PARAMETERS)}
    return objects(FunctionDefinition, known)


def distinct(values: Values) -> Values:
    """Functions in a list, of different names."""

    def name(function: Body) -> str:
        return str(function["function"]["name"] if "function" in function else function["name"])

    return st.lists(values, max_size=3, unique_by=name)


def structured() -> Values:
    """One form, or now and then several, which is a contradiction."""
    each = {
        "regex": REGEXES,
        "choice": st.lists(TEXTS.filter(bool) | st.sampled_from(["ja", "nein", "j"]), min_size=1, max_size=4),
        "grammar": st.sampled_from(sorted(GRAMMARS)),
        "json": ROOTS | ROOTS.map(json.dumps),
        "json_object": st.booleans(),
    }
    ones = [values.map(lambda value, name=name: {name: value}) for name, values in each.items()]
    return st.one_of(*ones, *ones, st.fixed_dictionaries({}, optional=each))


def response_format() -> Values:
    schema = st.fixed_dictionaries(
        {"name": st.just("form")}, optional={"schema": schema_field(ROOTS), "strict": st.booleans()}
    )
    named = schema.map(lambda its: {"type": "json_schema", "json_schema": its})
    return st.one_of(
        named, named, st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}])
    )


def text_format() -> Values:
    named = schema_field(ROOTS).map(
        lambda schema: {"format": {"type": "json_schema", "name": "form", "schema": schema}}
    )
    return named | st.sampled_from(
        [{}, {"verbosity": "low"}, {"format": {"type": "json_object"}}, {"format": {"type": "text"}}]
    )


def conversation() -> Values:
    """Chats in which calls have results, and, more rarely, whatever the types allow."""
    said = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": contents()},
        optional={"name": TEXTS},
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    called = st.sampled_from(
        [
            [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "12 Grad"}],
            [
                {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": ""}},
                {"role": "function", "name": "g", "content": "</tool_response>"},
            ],
        ]
    )
    turns = st.lists(said.map(lambda one: [one]) | called, min_size=1, max_size=3)
    chat = turns.map(lambda parts: [message for part in parts for message in part])
    odd = st.lists(objects(Message, {"content": contents() | st.none()}), min_size=1, max_size=3)
    return st.one_of(chat, chat, chat, chat, odd)


def contents() -> Values:
    part = objects(ContentPart, {"type": st.sampled_from(["text", "text", "refusal", "image_url"])}, rest=2)
    return st.one_of(TEXTS, TEXTS, st.lists(part, min_size=1, max_size=2))


def items() -> Values:
    message = objects(MessageItem, {"content": TEXTS | st.lists(input_parts(), min_size=1, max_size=2)})
    call = objects(CallItem, {"call_id": st.just("c1"), "name": CALLED})
    result = {"type": "function_call_output", "call_id": "c1", "output": "12 Grad"}
    called = call.map(lambda one: [one, result])
    turns = st.lists(
        message.map(lambda one: [one]) | called | objects(ReasoningItem, {}).map(lambda one: [one]),
        min_size=1,
        max_size=3,
    )
    return TEXTS | turns.map(lambda parts: [item for part in parts for item in part])


def input_parts() -> Values:
    return st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": TEXTS})


def choices() -> Values:
    """Which function to call: in the forms of chats and of responses."""
    name = CALLED.map(lambda name: {"name": name})
    known = {
        "function": name,
        "name": CALLED,
        "tools": st.lists(objects(NamedChoice, {"function": name}), min_size=1, max_size=2),
    }
    flat = CALLED.map(lambda name: {"type": "function", "name": name})
    modes = st.sampled_from(["none", "auto", "required", "required"])
    allowed = st.builds(
        lambda mode, tools: {"type": "allowed_tools", "mode": mode, "tools": tools},
        st.sampled_from(["auto", "required"]),
        st.lists(flat, min_size=1, max_size=2),
    )
    return st.one_of(modes, modes, objects(NamedChoice, known), objects(AllowedChoice, known), flat, allowed)


def known_fields(tokenizer: Tokenizer) -> Known:
    """What the types do not say of a field: the tokens there are, forms, functions, chats."""
    size = tokenizer.size
    ids = st.sampled_from([1, 2, size - 1, 100, 300]) | st.integers(3, size - 1)
    tool = st.fixed_dictionaries({"type": st.just("function"), "function": functions()})
    prompts = st.one_of(
        *(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)),
        *(st.lists(ids, max_size=8), st.lists(st.lists(ids, max_size=5), min_size=1, max_size=3)),
    )
    return {
        "model": st.just(MODEL),
        "prompt": prompts,
        "messages": conversation(),
        "input": items(),
        "n": st.sampled_from([1, 2, 3, 3, 4, 1024]),
        "best_of": st.sampled_from([1, 2, 3, 4, 5]),
        "stop": st.none() | STOPS | st.lists(STOPS, max_size=4),
        "stop_token_ids": st.lists(ids, max_size=4),
        "allowed_token_ids": st.none() | st.lists(ids, min_size=1, max_size=40) | st.just(list(range(3, 400))),
        "logit_bias": st.dictionaries(ids.map(str), st.sampled_from([-100, 100, 0, 3.5, -1]), max_size=4),
        "bad_words": st.lists(STOPS, max_size=3),
        "min_tokens": st.sampled_from([0, 1, 2, 5, 2**31 - 1]),
        "truncate_prompt_tokens": st.sampled_from([None, -1, 0, 1, 2, 3, 7, 2**31 - 1]),
        "response_format": response_format(),
        "structured_outputs": st.none() | structured(),
        "text": text_format(),
        "tools": distinct(tool),
        "functions": distinct(functions()),
        "function_call": st.sampled_from(["none", "auto", {"name": "f"}, {"name": "g"}]),
        "tool_choice": choices(),
        **dict.fromkeys(LENGTHS, FEW),
    }


SEEDS = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
STOPS = st.sampled_from(["e", "r", " ", "en", "\n", "ü", "�", "a", "}", '"', "n", "ch", "1"]) | TEXTS.filter(bool)


def bodies(path: str, tokenizer: Tokenizer) -> Values:
    """Bodies for one route. Each has a seed, and nearly each a length, so that it is answered, and soon."""
    model = MODELS[path]
    known = known_fields(tokenizer)
    if model is ResponsesRequest:
        tool = objects(
            FunctionTool, {"type": st.just("function"), "name": CALLED, "parameters": schema_field(PARAMETERS)}
        )
        known = {**known, "tools": distinct(tool), "n": st.just(1)}
    fields = {spelled(model, name): field for name, field in model.model_fields.items()}
    required = [name for name, field in fields.items() if field.is_required()]
    refused = [name for name, field in fields.items() if (field.description or "").startswith("Not supported")]
    heavy = [
        name for name in ("tools", "tool_choice", "structured_outputs", "response_format", "text") if name in fields
    ]
    usual = [name for name in fields if name not in (*required, *refused, *LENGTHS, "seed", "stream")]
    lengths = [name for name in LENGTHS if name in fields]

    @st.composite
    def build(draw: st.DrawFn) -> Body:
        body = {name: draw(field_values(name, fields[name], known)) for name in required}
        names = draw(st.lists(st.sampled_from([*usual, *heavy, *heavy]), max_size=9))
        if draw(st.integers(0, 9)) == 9:
            names.append(draw(st.sampled_from(refused)))
        for name in names:
            if name not in body:
                body[name] = draw(field_values(name, fields[name], known))
        return settled(body, draw, lengths)

    return build()


def settled(body: Body, draw: st.DrawFn, lengths: list[str]) -> Body:
    """Some of what contradicts itself in most bodies that are drawn blindly is set right."""
    formed = any(body.get(name) for name in ("tools", "functions", "structured_outputs", "response_format", "text"))
    body["seed"] = draw(SEEDS)
    if draw(st.integers(0, 9)):
        body[draw(st.sampled_from(lengths))] = draw(st.sampled_from([40, 90, 160]) if formed else FEW)
    if body.get("continue_final_message") and draw(st.integers(0, 5)):
        body["messages"].append(SAID)
    if body.get("tool_choice") and "tools" not in body and "functions" not in body:
        del body["tool_choice"]
    return body

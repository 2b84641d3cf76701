"""How a chat model is told of functions and calls them: Hermes' format for ChatML, in prompts and as a grammar.

The system message lists the functions between `<tools>` and `</tools>`, one JSON object a line. A call is

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Köln"}}
    </tool_call>

and its result comes back between `<tool_response>` and `</tool_response>` in a user's turn. `text/calls.py` reads the
calls. (Format: NousResearch, Hermes-Function-Calling; Qwen 2.5 has the same one.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

# LeoLM's language; what the words ask for holds in any language that the chat is in.
_INTRODUCTION = f"""\
Du kannst Funktionen aufrufen, wenn sie bei der Antwort helfen. Ihre Beschreibungen stehen zwischen <tools> und \
</tools>:
<tools>
FUNCTIONS
</tools>
Für jeden Aufruf schreibst du ein JSON-Objekt mit dem Namen der Funktion und den Argumenten zwischen {CALL} und \
{CALL_END}:
{CALL}
{{"name": "<Name der Funktion>", "arguments": {{<Argumente>}}}}
{CALL_END}
Das Ergebnis bekommst du zwischen {RESPONSE} und {RESPONSE_END}."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    parameters: the JSON schema of its arguments, an object; None for a function without any
    strict: its arguments follow the schema even when the model calls it of its own accord
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """Of the arguments, closed: the model fills in the parameters and invents none."""
        if not self.parameters:
            return NO_PARAMETERS
        open_ended = {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf"}
        schema = {"type": "object", **self.parameters}
        if "properties" in schema and not (open_ended | {"oneOf"}) & schema.keys():
            schema["additionalProperties"] = False
        return schema

    def for_template(self) -> dict[str, Any]:
        """As chat templates that know `tools` take it."""
        about: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            about["description"] = self.description
        about["parameters"] = dict(NO_PARAMETERS if self.parameters is None else self.parameters)
        return {"type": "function", "function": about}


@dataclass(frozen=True, slots=True)
class Calling:
    """Which functions an answer may call, and whether it must.

    tools: all that the model is told of
    allowed: the names of those that it may call
    mode: "auto": text or calls; "required": one call or more; "named": one call
    parallel: whether an answer may have more than one call
    """

    tools: Sequence[Tool]
    allowed: frozenset[str]
    mode: Literal["auto", "required", "named"] = "auto"
    parallel: bool = True

    @property
    def forced(self) -> bool:
        return self.mode != "auto"

    @property
    def single(self) -> bool:
        """Whether the first call ends the answer."""
        return self.mode == "named" or not self.parallel

    @property
    def callable(self) -> list[Tool]:
        return [tool for tool in self.tools if tool.name in self.allowed]


def with_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The chat as a template can render it that knows no tools: functions, calls and results are text of messages.

    `messages` are as OpenAI has them, with strings as content. Results of consecutive tool messages stand in one turn,
    in the order of the calls, since nothing else tells which is whose.
    """
    chat: list[dict[str, Any]] = []
    order: dict[str, int] = {}
    results: list[Mapping[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        chat += _responses(results, order)
        results = []
        calls = message.get("tool_calls") or ()
        order = {call["id"]: place for place, call in enumerate(calls)}
        told = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
        if calls:
            parts = [told["content"]] if told.get("content") else []
            told["content"] = "\n".join([*parts, *(call_text(call["function"]) for call in calls)])
        chat.append(told)
    chat += _responses(results, order)
    if not tools:
        return chat
    introduction = _INTRODUCTION.replace("FUNCTIONS", "\n".join(_json(tool.for_template()) for tool in tools))
    if chat and chat[0]["role"] in ("system", "developer"):
        own = chat[0].get("content")
        chat[0]["content"] = f"{own}\n\n{introduction}" if own else introduction
        return chat
    return [{"role": "system", "content": introduction}, *chat]


def for_knowing_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat for a template that knows tools: arguments are objects there, which it writes as JSON itself."""
    chat = []
    for message in messages:
        told = dict(message)
        if told.get("tool_calls"):
            told["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])}}
                for call in told["tool_calls"]
            ]
        chat.append(told)
    return chat


def call_text(function: Mapping[str, Any]) -> str:
    """One call as the model writes it; `function` has a name and arguments as JSON text."""
    arguments = function["arguments"].strip() or "{}"
    return f'{CALL}\n{{"name": {_json(function["name"])}, "arguments": {arguments}}}\n{CALL_END}'


def _responses(results: Sequence[Mapping[str, Any]], order: Mapping[str, int]) -> list[dict[str, Any]]:
    """One user's turn with all `results`; none without any."""
    if not results:
        return []
    ordered = sorted(results, key=lambda result: order.get(result.get("tool_call_id", ""), len(order)))
    texts = [f"{RESPONSE}\n{result.get('content') or ''}\n{RESPONSE_END}" for result in ordered]
    return [{"role": "user", "content": "\n".join(texts)}]


def _parsed(arguments: str) -> Any:
    """What the model once wrote may be no JSON; a template then gets it as it is."""
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

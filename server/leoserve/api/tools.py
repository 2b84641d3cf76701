"""Calling functions, for every endpoint that can: what a request may ask for, its prompt, its grammar, its answer.

Nothing here knows an endpoint's bodies; they hand over plain records and the names of their own fields.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from leoserve.api.errors import ApiError, bad_request, shorten
from leoserve.engine.request import Grammar
from leoserve.text.callgrammar import CannotCombine, call_grammar
from leoserve.text.template import ChatTemplate, RenderedPrompt
from leoserve.text.tools import Calling, Tool, for_knowing_template, with_tools

MAX_SCHEMA = 1 << 16  # characters of one function's parameters
MAX_SCHEMAS = 1 << 18  # characters of all functions' parameters
MAX_DESCRIPTION = 1 << 16  # characters
CALL_ID = string.ascii_letters + string.digits


def call_id() -> str:
    """A new id for a call, spelled as OpenAI spells them."""
    return "call_" + "".join(secrets.choice(CALL_ID) for _ in range(24))


def check_tools(tools: Sequence[Tool], path: str = "tools[{}].function") -> None:
    """Raises ApiError for a function that cannot be offered. `path`: the field that function number {} stands in."""
    seen: set[str] = set()
    total = 0
    for number, tool in enumerate(tools):
        field = path.format(number)
        if tool.name in seen:
            raise bad_request(
                f"Invalid '{field}.name': There is another function '{tool.name}' already.", f"{field}.name"
            )
        seen.add(tool.name)
        if len(tool.description or "") > MAX_DESCRIPTION:
            raise too_large(f"{field}.description", MAX_DESCRIPTION)
        if tool.parameters:
            total += check_parameters(tool, f"{field}.parameters")
    if total > MAX_SCHEMAS:
        raise too_large(path.partition("[")[0], MAX_SCHEMAS)


def check_parameters(tool: Tool, field: str) -> int:
    """The schema's size in characters. Raises ApiError."""
    parameters = tool.parameters or {}
    if parameters.get("type", "object") != "object":
        raise bad_request(
            f"Invalid '{field}': The schema of the function '{tool.name}' must have the type 'object', not "
            f"{shorten(json.dumps(parameters['type']))}.",
            field,
        )
    try:
        size = len(json.dumps(parameters, allow_nan=False))
    except (ValueError, RecursionError):
        raise bad_request(
            f"Invalid '{field}': The schema has numbers that are not finite, or is too deep.", field
        ) from None
    if size > MAX_SCHEMA:
        raise too_large(field, MAX_SCHEMA)
    return size


def too_large(field: str, most: int) -> ApiError:
    return bad_request(f"Invalid '{field}': At most {most} characters, as JSON.", field)


def calling_of(
    tools: Sequence[Tool],
    mode: Literal["auto", "required"] = "auto",
    *,
    named: str | None = None,
    allowed: Collection[str] | None = None,
    parallel: bool = True,
    field: str = "tool_choice",
) -> Calling:
    """How an answer may call. `named`: the one function to be called; `allowed`: those that may be, of all.

    Raises ApiError that names `field` for a function that is not among `tools`.
    """
    names = {tool.name for tool in tools}
    wanted = names if allowed is None else set(allowed)
    for name in [*(sorted(wanted)), *([named] if named is not None else [])]:
        if name not in names:
            raise bad_request(
                f"Invalid '{field}': The function '{shorten(name)}' is not among the tools of this request.", field
            )
    if named is not None:
        return Calling(tools, frozenset([named]), "named", parallel)
    return Calling(tools, frozenset(wanted), mode, parallel)


def render_chat(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    calling: Calling | None,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    extra: Mapping[str, Any],
) -> RenderedPrompt:
    """A chat with functions, calls and results as the template writes them, or as we do where it knows none.

    `messages`: as OpenAI has them, with strings as content. Raises TemplateError.
    """
    tools = calling.tools if calling is not None else ()
    if template.knows_tools:
        chat = for_knowing_template(messages)
        given = {**extra, "tools": [tool.for_template() for tool in tools]} if tools else extra
    else:
        chat = with_tools(messages, tools)
        given = extra
    return template.render(
        chat, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message, extra=given
    )


def told_texts(calling: Calling | None) -> Iterator[str]:
    """The texts that functions add to a prompt, for an estimate of its length."""
    for tool in calling.tools if calling is not None else ():
        yield tool.description or ""
        yield json.dumps(tool.parameters, ensure_ascii=False)


def grammar_for(calling: Calling | None, content: Grammar | None, field: str = "tools") -> Grammar | None:
    """What the answer must be. `content`: what its text must be; `field`: the functions' field. Raises ApiError."""
    if calling is None:
        return content
    try:
        grammar = call_grammar(calling, content)
    except CannotCombine as error:
        raise bad_request(str(error), content.param if content is not None else field) from None
    return None if grammar is None else msgspec.structs.replace(grammar, param=field)


def finish_reason(finish: str | None, calls: int, calling: Calling | None) -> str | None:
    """As OpenAI tells it: "tool_calls" for calls that the model decided on, "stop" for the one that was named."""
    if finish == "stop" and calls and (calling is None or calling.mode != "named"):
        return "tool_calls"
    return finish


def check_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Every call of a chat has one result behind it, and every result its call. Raises ApiError.

    `messages` are as OpenAI has them; the field of an error is `messages[…]`.
    """
    waiting: dict[str, int | None] = {}  # by id of a call, the message with its result
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if message["role"] == "tool":
            check_result(message, number, waiting)
            continue
        check_answered(waiting, f"messages[{number - 1}]")
        waiting = {}
        for place, call in enumerate(message.get("tool_calls") or ()):
            if call["id"] in waiting:
                path = f"{field}.tool_calls[{place}].id"
                raise bad_request(f"Invalid '{path}': Another call of this message has the same id.", path)
            waiting[call["id"]] = None
    check_answered(waiting, f"messages[{len(messages) - 1}]")


def check_result(message: Mapping[str, Any], number: int, waiting: dict[str, int | None]) -> None:
    if not waiting:
        raise bad_request(
            f"Invalid 'messages[{number}].role': A message with role 'tool' must be a response to a preceding message "
            "with 'tool_calls'.",
            f"messages[{number}].role",
        )
    field = f"messages[{number}].tool_call_id"
    its_id = message["tool_call_id"]
    if its_id not in waiting:
        raise bad_request(
            f"Invalid '{field}': '{shorten(its_id)}' is not found in 'tool_calls' of the previous message.", field
        )
    if (other := waiting[its_id]) is not None:
        raise bad_request(f"Invalid '{field}': messages[{other}] answers '{shorten(its_id)}' already.", field)
    waiting[its_id] = number


def check_answered(waiting: Mapping[str, int | None], field: str) -> None:
    missing = [name for name, answer in waiting.items() if answer is None]
    if missing:
        raise bad_request(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. These have no response: {shorten(', '.join(missing))}.",
            f"{field}.role",
        )

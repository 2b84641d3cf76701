"""What holds of every answer, whatever was asked for."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from leoserve.api.protocol.base import Body as BodyModel
from leoserve.text.tokenizer import Tokenizer
from leoserve.text.tools import Tool

from .bodies import LENGTHS, MODELS
from .forms import form_of, valid
from .told import LOGPROBS, Body, Choice, Json, Told

KEYS = {"message", "type", "param", "code"}
NOTHING_LEFT = "This request cannot be answered"  # the parameters together leave no token: no single one is at fault
CALL = re.compile(r'<tool_call>\n\{"name": "(\w+)", "arguments": (.*?)\}\n</tool_call>', re.DOTALL)


def check_error(body: Body, status: int, answer: Json) -> str | None:
    """Assert that an error is OpenAI's, and names a field that was sent: the field."""
    assert 400 <= status < 500, answer
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == KEYS
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None or isinstance(error["code"], str)
    param = error["param"]
    if param is None:
        assert error["message"].startswith(NOTHING_LEFT), answer
        return None
    assert leads_somewhere(param, body), (param, answer)
    return str(re.split(r"[.\[]", param, maxsplit=1)[0])


def leads_somewhere(param: str, body: Body) -> bool:
    """Whether `param` is the path of a value that was sent, or of one that is missing in what was sent."""
    value: Any = body
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", param)
    for number, (index, name) in enumerate(parts):
        last = number == len(parts) - 1
        if index:
            if not isinstance(value, list) or int(index) >= len(value):
                return False
            value = value[int(index)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return last and number > 0 and isinstance(value, dict | str | list)
    return True


class Judge:
    """Holds answers to the request by the served model's tokenizer. `context`: most tokens of prompt and answer."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context

    def check(self, path: str, body: Body, told: Told) -> None:
        """`told`: the answer to `body`, which asked for the ids of the tokens where the route can tell them."""
        if path == "/v1/responses":
            (choice,) = told.choices
            self.check_form(body, choice, ended=not stops_of(body) and not body.get("stop_token_ids"))
            self.check_response(body, choice, told.usage)
            return
        n = body.get("n") or 1
        prompts = prompts_of(body)
        assert len(told.choices) == n * len(prompts)
        for number, choice in enumerate(told.choices):
            self.check_prompt(path, body, choice, prompts[number // n])
            self.check_choice(path, body, choice)
        self.check_usage(body, told)

    def check_usage(self, body: Body, told: Told) -> None:
        usage, n = told.usage, body.get("n") or 1
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens"] == sum(len(choice.prompt_token_ids or ()) for choice in told.choices[::n])
        generated = sum(len(choice.token_ids or ()) for choice in told.choices)
        if (body.get("best_of") or n) == n:
            assert usage["completion_tokens"] == generated
        else:
            assert usage["completion_tokens"] >= generated

    def check_prompt(self, path: str, body: Body, choice: Choice, prompt: str | list[int] | None) -> None:
        ids = choice.prompt_token_ids
        assert ids
        if path == "/v1/completions":
            expected = prompt
            if isinstance(prompt, str):
                bos = body.get("add_special_tokens")
                expected = self.tokenizer.encode(prompt, add_bos=bos is None or bos, control_tokens=True)
            expected = expected or [self.tokenizer.bos_id]
            most = body.get("truncate_prompt_tokens")
            assert ids == expected if most is None else len(ids) == min(len(expected), most if most > 0 else len(ids))
        assert len(ids) < self.context or body.get("max_tokens") == 0
        if choice.prompt_logprobs is not None:
            assert len(choice.prompt_logprobs) == len(ids)

    def check_choice(self, path: str, body: Body, choice: Choice) -> None:
        ids = choice.token_ids
        assert ids is not None
        text = choice.text or ""
        if body.get("echo"):
            given = prompts_of(body)[0] if len(prompts_of(body)) == 1 else None
            echo = given if isinstance(given, str) and body.get("truncate_prompt_tokens") is None else None
            echo = self.tokenizer.decode(choice.prompt_token_ids or []) if echo is None else echo
            if len(prompts_of(body)) == 1:
                assert text.startswith(echo)
                text = text[len(echo) :]
            else:
                return
        spoken, cut, ended = self.spoken(body, choice)
        if not can_call(body):
            assert text == cut
            assert choice.calls == []
        else:
            self.check_calls(body, choice, spoken)
        self.check_finish(body, choice, cut != spoken or self.stopped(body, ids), ended)
        self.check_form(body, choice, ended=ended and cut == spoken)
        self.check_tokens(body, ids)
        if body.get("logprobs") not in (None, False):
            self.check_logprobs(path, body, choice)

    def spoken(self, body: Body, choice: Choice) -> tuple[str, str, bool]:
        """The text of the tokens; the same up to where a stop string ends it; and whether the model itself ended it."""
        ids = choice.token_ids or []
        include = bool(body.get("include_stop_str_in_output"))
        by_token = bool(ids) and ids[-1] in self.ends(body)
        vocabulary = self.tokenizer.vocabulary
        skip = body.get("skip_special_tokens")
        pieces = vocabulary.shown if skip is None or skip else vocabulary.pieces
        decoder = codecs.getincrementaldecoder("utf-8")(errors=vocabulary.invalid_bytes)
        begun = b"".join(pieces[token] for token in choice.prompt_token_ids or ())
        text, started, most = "", bool(begun), body.get("min_tokens") or 0
        decoder.decode(unfinished(begun))
        found = None
        for number, token in enumerate(ids, start=1):
            piece = pieces[token] if not by_token or number < len(ids) or include else b""
            if piece and not started:
                piece, started = piece.removeprefix(b" "), True
            more = decoder.decode(piece)
            pending = decoder.decode(b"", True) if number == len(ids) else ""
            found = self.earliest(body, text, more, number >= most) if found is None else found
            text += more
            if found is not None:
                assert number == len(ids), "a stop string was complete before the last token"
            elif pending:
                found = self.earliest(body, text, pending, True)
            text += pending
        cut = text if found is None else text[: found[1] if include else found[0]]
        return text, cut, by_token and ids[-1] in self.tokenizer.stop_ids and found is None

    def earliest(self, body: Body, before: str, more: str, look: bool) -> tuple[int, int] | None:
        """Where the stop string begins and ends that `more` completes first, the longest of them."""
        if not look or can_call(body):
            return None
        for end in range(len(before) + 1, len(before) + len(more) + 1):
            text = (before + more)[:end]
            for stop in sorted(stops_of(body), key=len, reverse=True):
                if text.endswith(stop):
                    return end - len(stop), end
        return None

    def ends(self, body: Body) -> set[int]:
        own = set() if body.get("ignore_eos") else set(self.tokenizer.stop_ids)
        return own | set(body.get("stop_token_ids") or ())

    def stopped(self, body: Body, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.ends(body)

    def check_finish(self, body: Body, choice: Choice, stopped: bool, ended: bool) -> None:
        """`length` exactly where nothing else ended the answer, and only at the most tokens it can have."""
        count = len(choice.token_ids or ())
        most = most_tokens(body, len(choice.prompt_token_ids or ()), self.context)
        assert count <= most
        finish = choice.finish
        if finish == "length":
            assert count == most
            assert not stopped
            return
        assert finish in ("stop", "tool_calls", "function_call")
        assert count >= min(body.get("min_tokens") or 0, count)
        by_form = form_of(body) is not None or can_call(body)
        assert stopped or by_form or any(stop in (choice.text or "") for stop in stops_of(body)), "why has it ended?"
        assert (finish != "stop") == (bool(choice.calls) and not named(body))

    def check_tokens(self, body: Body, ids: list[int]) -> None:
        own = self.ends(body)
        assert not own & set(ids[:-1])
        size = self.tokenizer.size
        assert all(0 <= token < size for token in ids)
        if body.get("allowed_token_ids") is not None:
            assert set(ids) <= set(body["allowed_token_ids"]) | (own if body.get("min_tokens") is None else own)
        for token, bias in (body.get("logit_bias") or {}).items():
            assert bias > -100 or int(token) not in ids
        for word in body.get("bad_words") or ():
            for banned in self.tokenizer.encode_bad_word(word):
                assert banned not in [ids[at : at + len(banned)] for at in range(len(ids))]

    def check_calls(self, body: Body, choice: Choice, spoken: str) -> None:
        """Calls are those that the text has, with arguments as the functions' schemas say where they must be."""
        found = CALL.findall(spoken)
        complete = [(name, arguments) for name, arguments in found]
        if choice.finish != "length" and not stops_of(body):
            assert choice.calls == complete
            if not complete:
                assert (choice.text or "") == spoken
        for name, arguments in choice.calls if choice.finish in ("tool_calls", "function_call") else ():
            tool = tools_of(body)[name]
            value = json.loads(arguments)
            assert isinstance(value, dict)
            if tool.strict:
                assert valid(dict(tool.schema), value), (tool.schema, value)

    def check_form(self, body: Body, choice: Choice, *, ended: bool) -> None:
        accepts = form_of(body)
        if accepts is None or choice.finish == "length" or choice.calls or not ended:
            return
        assert accepts(choice.text or ""), (choice.text, body)

    def check_logprobs(self, path: str, body: Body, choice: Choice) -> None:
        ids, told = choice.token_ids or [], choice.logprobs
        names = [self.tokenizer.token_text(token) for token in ids]
        if path == "/v1/completions":
            assert len({len(values) for values in told.values()}) == 1
            assert told["tokens"][len(told["tokens"]) - len(ids) :] == names
            values = told["token_logprobs"]
            assert all(value is None or value <= 0 for value in values)
            assert [value for value in values[1:] if value is None] == []
            assert told["text_offset"] == sorted(told["text_offset"])
            assert all(0 <= offset <= len(choice.text or "") for offset in told["text_offset"])
            return
        assert [entry["token"] for entry in told["content"]] == names
        self.check_entries(told["content"], body.get("top_logprobs") or 0)

    def check_entries(self, entries: list[Json], count: int) -> None:
        for entry in entries:
            assert -9999 <= entry["logprob"] <= 0
            tops = [other["logprob"] for other in entry["top_logprobs"]]
            assert len(tops) == min(count, self.tokenizer.size)
            assert tops == sorted(tops, reverse=True)
            assert sum(map(math.exp, tops)) <= 1.001
            same = [other for other in entry["top_logprobs"] if other["token"] == entry["token"]]
            assert not same or entry["logprob"] in [other["logprob"] for other in same]

    def check_response(self, body: Body, choice: Choice, usage: Json) -> None:
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        most = most_tokens(body, usage["input_tokens"], self.context)
        assert usage["output_tokens"] <= most
        if choice.finish == "length":
            assert usage["output_tokens"] == most
        wanted = LOGPROBS in (body.get("include") or ()) or body.get("top_logprobs")
        assert wanted or choice.logprobs == []
        self.check_entries(choice.logprobs, body.get("top_logprobs") or 0)


def unfinished(data: bytes) -> bytes:
    """The bytes of a character that is not complete at the end of `data`."""
    for length in (1, 2, 3):
        tail = data[-length:]
        if len(tail) == length and tail[0] >= 0xC0:
            try:
                tail.decode()
            except UnicodeDecodeError as error:
                return tail if error.reason == "unexpected end of data" else b""
            return b""
    return b""


def stops_of(body: Body) -> list[str]:
    stop = body.get("stop")
    return [stop] if isinstance(stop, str) else stop or []


def prompts_of(body: Body) -> Sequence[Any]:
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return [prompt]
    return prompt


def most_tokens(body: Body, prompt: int, context: int) -> int:
    if "max_output_tokens" in body or "input" in body:
        return body.get("max_output_tokens") or context - prompt
    if "prompt" in body:
        asked = body.get("max_tokens")
        return 16 if asked is None else int(asked)
    return body.get("max_completion_tokens") or body.get("max_tokens") or context - prompt


def tools_of(body: Body) -> dict[str, Tool]:
    """The functions by name, as any of the three forms offers them."""
    tools = {}
    default = "input" in body
    for given in [*(body.get("tools") or ()), *(body.get("functions") or ())]:
        its = given.get("function", given)
        strict = its.get("strict")
        tools[its["name"]] = Tool(its["name"], None, its.get("parameters"), default if strict is None else strict)
    return tools


def can_call(body: Body) -> bool:
    choice = "function_call" if body.get("functions") else "tool_choice"
    return bool(tools_of(body)) and body.get(choice) != "none"


def named(body: Body) -> bool:
    """Whether one function has to be called."""
    choice = body.get("function_call" if body.get("functions") else "tool_choice")
    return isinstance(choice, dict) and choice.get("type") != "allowed_tools"


def ignored_fields(path: str) -> set[str]:
    """Those that are documented as without effect."""
    model: type[BodyModel] = MODELS[path]  # type: ignore[assignment]
    fields = model.model_fields.items()
    return {name for name, field in fields if "without effect" in (field.description or "") and name != "include"}


__all__ = ["LENGTHS", "Judge", "can_call", "check_error", "ignored_fields", "stops_of"]

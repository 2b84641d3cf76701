"""Calls of functions in a model's text, found while it is written. The format is that of `text/tools.py`.

What may yet become a call is held back. What turns out to be none (no JSON, a function that nobody offered, a call cut
off before its arguments) is text like any other. Once the name is known to be good and the arguments have begun, the
call is given out as it is written, and stays a call.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from leoserve.text.tools import CALL, CALL_END

SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]"}
_BARE = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE,:" + SPACE)  # of JSON outside of strings and brackets


@dataclass(frozen=True, slots=True)
class Content:
    """Text beside the calls. `end`: how many characters of the whole answer are settled with it."""

    text: str
    end: int


@dataclass(frozen=True, slots=True)
class CallPiece:
    """More of call `index`. The first piece of a call has its name; `arguments` are as the model wrote them."""

    index: int
    end: int
    name: str | None = None
    arguments: str = ""
    complete: bool = False


Piece = Content | CallPiece


class CallParser:
    """The calls and the text of one answer. `names`: the functions that may be called. `calls`: how many have begun.

    White space before a call, and behind one, is dropped where no other text stands between.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self.calls = 0
        self._held = ""  # text that is not settled yet
        self._settled = 0  # characters before it
        self._at_edge = True  # nothing but white space since the beginning, or since the last call
        self._object: _Object | None = None  # of the call whose beginning has been read
        self._read = 0  # characters of `_held` that `_object` has seen
        self._place = "text"  # or "call", "arguments", "stray arguments", "call's end"

    def push(self, text: str) -> list[Piece]:
        """What is certain with `text`."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        pieces: list[Piece] = []
        while self._place == "call":  # never came so far as to be one
            self._reject(pieces)
            while self._step(pieces):
                pass
        if self._place == "text":
            if self._held and (self.calls == 0 or self._held.strip(SPACE)):
                self._content(pieces, len(self._held))
        elif self._place == "call's end":
            self._call(pieces, len(self._held), complete=True)
        elif self._held:
            self._call(pieces, len(self._held), arguments=self._held)
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Settle one stretch of what is held; whether another may follow."""
        match self._place:
            case "text":
                return self._read_text(pieces)
            case "call":
                return self._read_call(pieces)
            case "arguments":
                return self._read_arguments(pieces)
            case "stray arguments":
                return self._read_stray_arguments(pieces)
            case _:
                return self._read_end(pieces)

    def _read_text(self, pieces: list[Piece]) -> bool:
        start = self._held.find(CALL)
        safe = start if start >= 0 else len(self._held) - _overlap(self._held, CALL)
        if self._at_edge and not self._held[:safe].strip(SPACE):
            if start < 0:
                return False
            self._settle(safe)
        elif safe:
            self._content(pieces, safe)
        if start < 0:
            return False
        self._place, self._object, self._read = "call", _Object(), len(CALL)
        return True

    def _read_call(self, pieces: list[Piece]) -> bool:
        """Up to where the arguments begin, or the object's end where they do not come last."""
        its = self._object = self._object or _Object()
        while self._read < len(self._held):
            its.push(self._held[self._read])
            self._read += 1
            if its.broken or (its.name is not None and its.name not in self.names):
                self._reject(pieces)
                return True
            if its.closed:
                self._read_closed(pieces, its)
                return True
            if its.in_arguments and its.name is not None:
                self._settle(self._read - 1)  # the brace is the first of the arguments
                self._begin(pieces, its.name)
                self._place, self._read = "arguments", 1
                return True
        return False

    def _read_closed(self, pieces: list[Piece], its: _Object) -> None:
        """A call that was read as a whole, for its arguments came first, or are none."""
        arguments = _arguments_of(self._held[len(CALL) : self._read], its)
        if its.name is None or arguments is None:
            self._reject(pieces)
            return
        self._settle(self._read)
        self._begin(pieces, its.name)
        self._call(pieces, 0, arguments=arguments)
        self._place = "call's end"

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        its = self._object = self._object or _Object()
        while its.in_arguments and self._read < len(self._held):
            its.push(self._held[self._read])
            if its.broken:
                self._place = "stray arguments"
                return True
            self._read += 1
        if its.in_arguments:
            if self._held:
                self._call(pieces, len(self._held), arguments=self._held)
            self._read = 0
            return False
        if self._read:
            self._call(pieces, self._read, arguments=self._held[: self._read])
            self._read = 0
        while not its.closed and not its.broken and self._held:
            its.push(self._held[0])
            if not its.broken:
                self._settle(1)
        if its.closed or its.broken:
            self._place = "call's end"
            return True
        return False

    def _read_stray_arguments(self, pieces: list[Piece]) -> bool:
        """Arguments that are no JSON go on to the call's end."""
        end = self._held.find(CALL_END)
        safe = end if end >= 0 else len(self._held) - _overlap(self._held, CALL_END)
        if safe:
            self._call(pieces, safe, arguments=self._held[:safe])
        if end >= 0:
            self._place = "call's end"
        return end >= 0

    def _read_end(self, pieces: list[Piece]) -> bool:
        """`</tool_call>`, which a model may also forget."""
        rest = self._held.lstrip(SPACE)
        spaces = len(self._held) - len(rest)
        if CALL_END.startswith(rest) and rest != CALL_END:
            return False
        self._call(pieces, spaces + len(CALL_END) if rest.startswith(CALL_END) else 0, complete=True)
        self._place, self._object, self._at_edge = "text", None, True
        return True

    def _reject(self, pieces: list[Piece]) -> None:
        """It is no call: its first tag is text, and what follows may be anything."""
        self._place, self._object = "text", None
        self._content(pieces, len(CALL))

    def _content(self, pieces: list[Piece], length: int) -> None:
        text = self._held[:length]
        self._settle(length)
        self._at_edge = False
        pieces.append(Content(text, self._settled))

    def _begin(self, pieces: list[Piece], name: str) -> None:
        pieces.append(CallPiece(self.calls, self._settled, name=name))
        self.calls += 1

    def _call(self, pieces: list[Piece], length: int, *, arguments: str = "", complete: bool = False) -> None:
        self._settle(length)
        pieces.append(CallPiece(self.calls - 1, self._settled, arguments=arguments, complete=complete))

    def _settle(self, length: int) -> None:
        self._held = self._held[length:]
        self._settled += length


class _Object:
    """Follows the JSON object of a call, character by character.

    Strings and brackets are told apart exactly; numbers and literals only by their characters.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.in_arguments = False  # inside an object that is the value of "arguments"
        self.arguments: tuple[int, int] | None = None  # where that value stands in the object's text, once complete
        self.closed = False
        self.broken = False
        self._length = 0
        self._expects = "object"  # at the outer level: "key", "colon", "value", "comma"
        self._key = ""
        self._value_start = 0
        self._inner: list[str] = []  # closing brackets of what is open inside the value
        self._string: list[str] | None = None  # the characters of an open string, with its quotes
        self._escaped = False

    def push(self, character: str) -> None:
        self._length += 1
        if self._string is not None:
            self._in_string(character)
        elif self._inner:
            self._in_value(character)
        elif character in SPACE:
            self._end_scalar()
        else:
            self._outside(character)

    def _in_string(self, character: str) -> None:
        string = self._string or []
        if not self._inner:
            string.append(character)
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._string = None
            if not self._inner:
                self._end_string("".join(string))

    def _in_value(self, character: str) -> None:
        if character == '"':
            self._string = []
        elif character in _CLOSING:
            self._inner.append(_CLOSING[character])
        elif character == self._inner[-1]:
            self._inner.pop()
            if not self._inner:
                self._end_value()
        elif character not in _BARE:
            self.broken = True

    def _outside(self, character: str) -> None:
        match self._expects, character:
            case "object", "{":
                self._expects = "first key"
            case "first key" | "key", '"':
                self._string = ['"']
            case "colon", ":":
                self._expects = "value"
            case "value", '"':
                self._begin_value()
                self._string = ['"']
            case "value", "{" | "[":
                self._begin_value()
                self._inner.append(_CLOSING[character])
                self.in_arguments = self._key == "arguments" and character == "{"
            case "value", _ if character in _BARE and character not in ",:":
                self._begin_value()
                self._expects = "scalar"
            case "scalar" | "comma", ",":
                self._end_scalar()
                self._expects = "key"
            case "scalar" | "comma" | "first key", "}":
                self._end_scalar()
                self.closed = True
            case "scalar", _ if character in _BARE:
                pass
            case _:
                self.broken = True

    def _begin_value(self) -> None:
        self._value_start = self._length - 1

    def _end_scalar(self) -> None:
        if self._expects == "scalar":
            self._length -= 1
            self._end_value()
            self._length += 1

    def _end_string(self, literal: str) -> None:
        try:
            text = json.loads(literal, strict=False)
        except ValueError:
            self.broken = True
            return
        if self._expects == "value":
            if self._key == "name":
                self.name = text
            self._end_value()
        else:
            self._key = text
            self._expects = "colon"

    def _end_value(self) -> None:
        self.in_arguments = False
        self._expects = "comma"
        if self._key == "arguments":
            self.arguments = (self._value_start, self._length)


def _arguments_of(text: str, its: _Object) -> str | None:
    """The arguments of a whole call as JSON text of an object; None when they are not that.

    A call without any has none; models also write them as a string.
    """
    try:
        call: dict[str, Any] = json.loads(text, strict=False)
    except ValueError:
        return None
    given = call.get("arguments")
    if given is None:
        return "{}"
    if isinstance(given, dict) and its.arguments is not None:
        return text[slice(*its.arguments)]
    if isinstance(given, str):
        try:
            return given if isinstance(json.loads(given), dict) else None
        except ValueError:
            return None
    return None


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    start = max(len(text) - len(tag) + 1, 0)
    while (start := text.find(tag[0], start)) >= 0:
        if tag.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0

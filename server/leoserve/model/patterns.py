"""Regular expressions that schemas are rewritten with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_NAMES = 20_000  # characters of all names that an expression is to leave out
MAX_NAME = 200  # characters of one of them

# RFC 3339, in capital letters, without leap seconds, from the year 1: what every library takes.
_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]\d|\d[1-9]\d{2}|[1-9]\d{3})"
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
_DATE = rf"({_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)".replace(r"\d", "[0-9]")
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)".replace(r"\d", "[0-9]")
DATE, TIME, DATE_TIME = f"^{_DATE}$", f"^{_TIME}$", f"^{_DATE}T{_TIME}$"

# What generators write with a look-ahead, without it.
KNOWN = {
    # pydantic, for a Decimal: something other than signs and dots
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$",
}


def other_than(names: Sequence[str]) -> str | None:
    """An expression for all strings but these, of about their length; None if they are too long for one."""
    if sum(map(len, names)) > MAX_NAMES or max(map(len, names), default=0) > MAX_NAME:
        return None
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}  # a name ends here
    return f"^{_beside(tree)}$"


def _beside(node: dict[str, Any]) -> str:
    """What may follow where the names go on as `node` says: to leave them, to follow one further, or to stop."""
    following = [character for character in node if character]
    left = f"[^{''.join(map(_escaped, following))}]" if following else r"[\s\S]"
    ways = [rf"{left}[\s\S]*", *(_escaped(character) + _beside(node[character]) for character in following)]
    return f"(?:{'|'.join(ways)}){'' if '' in node else '?'}"


def _escaped(character: str) -> str:
    return character if character.isascii() and character.isalnum() else rf"\x{{{ord(character):x}}}"

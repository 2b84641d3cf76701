"""What is said where an option cannot be accepted."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from leoserve.settings.option import extra, flag, show, variable


class SettingsError(Exception):
    """An option that cannot be accepted: one line that names it, its value and what would be right."""


def describe(error: ErrorDetails, fields: Mapping[str, FieldInfo], flags: Mapping[str, Any]) -> str:
    """One error of pydantic, as `--flag value: what would be right`, said where the value came from."""
    name = str(error["loc"][0])
    value = "•••" if extra(fields[name])["secret"] else show(error["input"])
    if name in flags:
        where = f"{flag(name)} {value}" if name != "model" else f"MODEL {value}"
    elif os.environ.get(variable(name)):
        where = f"{variable(name)}={value}"
    else:
        file = flags.get("config") or os.environ.get(variable("config"))
        where = f"--config {file}: {name}: {value}"
    message = re.sub(r"^Input should be", "should be", error["msg"].removeprefix("Value error, "))
    return f"{where}: {message[:1].lower()}{message[1:]}"


def reason(error: Exception) -> str:
    """What the operating system says, without its error number and the path again."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`; did you mean …?` when one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""

"""The options of `settings/` as arguments of a command line, grouped, each with its unit and default."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from leoserve.settings import Settings, extra, flag, show


def help_text(field: FieldInfo) -> str:
    """The description, then the default with its unit, or what leaving the option out means."""
    what = extra(field)
    default = field.get_default(call_default_factory=True)
    unit = f" {what['unit']}" if what["unit"] else ""
    if default in (None, [], ""):
        shown = what["unset"] or "none"
        unit = f"; in {what['unit']}" if what["unit"] else ""
    else:
        shown = show(default)
    return f"{field.description} [default: {shown}{unit}]".replace("%", "%%")


def add_options(parser: argparse.ArgumentParser, names: Iterable[str] = Settings.model_fields) -> None:
    """The options `names` as arguments of `parser`, in their groups. Values stay text here: `Settings` judges them.

    What was not given is absent from the parsed namespace.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in names:
        field = Settings.model_fields[name]
        title = extra(field)["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        kwargs: dict[str, Any] = {"help": help_text(field), "default": argparse.SUPPRESS}
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if is_switch(field):
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **kwargs)
            continue
        kwargs["metavar"] = extra(field)["metavar"] or "|".join(choices) or ("N" if numeric(field) else "TEXT")
        if name == "model":
            group.add_argument(name, nargs="?", **kwargs)
        elif field.annotation == list[str]:
            group.add_argument(flag(name), action="append", **kwargs)
        else:
            group.add_argument(flag(name), **kwargs)


def is_switch(field: FieldInfo) -> bool:
    """Whether the option is turned on by its flag and off by `--no-…`."""
    return bool in {field.annotation, *get_args(field.annotation)}


def numeric(field: FieldInfo) -> bool:
    return bool({int, float} & ({field.annotation} | set(get_args(field.annotation))))

"""One option: what is said of it beside its type, and how its name and its value are spelled."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, JsonValue
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

PREFIX = "LEOSERVE_"


def option(
    default: Any,
    group: str,
    description: str,
    *,
    unit: str = "",
    unset: str = "",
    metavar: str = "",
    secret: bool = False,
    **bounds: Any,
) -> Any:
    """A field of `Settings`.

    `unit` follows the default in the help; `unset` says there what no value means; a `secret` is never printed.
    `bounds` are pydantic's (ge, gt, le, lt).
    """
    extra: dict[str, JsonValue] = {"group": group, "unit": unit, "unset": unset, "metavar": metavar, "secret": secret}
    factory = {"default_factory": list} if default == [] else {"default": default}
    return Field(**factory, description=description, json_schema_extra=extra, repr=not secret, **bounds)


def split_commas(value: object) -> object:
    """Lists come from a variable as `a,b`, from repeated flags as ["a", "b"], from YAML as either."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Names = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return (PREFIX + name).upper()


def extra(field: FieldInfo) -> dict[str, Any]:
    """What `option` was told of the field beside pydantic's own."""
    return cast(dict[str, Any], field.json_schema_extra)


def show(value: object) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:_}" if value >= 1_000_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)

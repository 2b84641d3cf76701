"""Values for every field of a pydantic model, valid by its types and bounds, with the bounds themselves likelier.

Everything is read off the model, so that a new field is tried without being asked for. `Known` says what types cannot:
which tokens there are, what a grammar looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Values = st.SearchStrategy[Any]
Known = Mapping[str, Values]  # by the name that a field has in a request

PIECES = [
    *(
        "Die Stadt",
        " liegt",
        "e",
        "er",
        " ",
        "\n",
        "\t",
        "ß",
        "Ä",
        "ü",
        "A\u0308",
        "🦁",
        "👩‍👩‍👧",
        "\u2028",
        "\ufeff",
        "\u202e",
    ),
    *(
        "<|im_end|>",
        "<|im_start|>user\n",
        "<s>",
        "</s>",
        "<SEP>",
        "<tool_call>",
        "</tool_call>",
        "{",
        '"',
        "\\",
        "\x00",
    ),
    *("▁", "<0x0A>", "�", "{{ 7 * 7 }}", "data: [DONE]\n\n", "null", "-1", "\r\n", "\u007f"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MOST = 4  # elements of a list or a dictionary whose type says nothing else


@dataclass(frozen=True)
class Bounds:
    """What the metadata of a type say."""

    low: float | None = None  # least value that is allowed, up to the least step
    high: float | None = None
    shortest: int = 0
    longest: int | None = None
    pattern: str | None = None
    low_open: bool = False
    high_open: bool = False

    @classmethod
    def of(cls, metadata: Iterable[Any]) -> Bounds:
        bounds = cls()
        for item in metadata:
            if isinstance(item, FieldInfo):
                continue
            match item:
                case annotated_types.Ge(ge=low):
                    bounds = replace(bounds, low=low, low_open=False)
                case annotated_types.Gt(gt=low):
                    bounds = replace(bounds, low=low, low_open=True)
                case annotated_types.Le(le=high):
                    bounds = replace(bounds, high=high, high_open=False)
                case annotated_types.Lt(lt=high):
                    bounds = replace(bounds, high=high, high_open=True)
                case annotated_types.MinLen(min_length=length):
                    bounds = replace(bounds, shortest=length)
                case annotated_types.MaxLen(max_length=length):
                    bounds = replace(bounds, longest=length)
                case _ if getattr(item, "pattern", None) is not None:
                    bounds = replace(bounds, pattern=item.pattern)
        return bounds


def spelled(model: type[BaseModel], name: str) -> str:
    """The name that a field has in a request."""
    return model.model_fields[name].alias or name


def objects(model: type[BaseModel], known: Known, *, rest: int = 3) -> Values:
    """Objects of `model`: what it requires, and up to `rest` of the other fields."""
    fields = {spelled(model, name): field for name, field in model.model_fields.items()}
    needed = {name: field_values(name, field, known) for name, field in fields.items() if field.is_required()}
    others = [name for name in fields if name not in needed]

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        built = {name: draw(values) for name, values in needed.items()}
        for name in draw(st.lists(st.sampled_from(others), unique=True, max_size=rest)) if others else ():
            built[name] = draw(field_values(name, fields[name], known))
        return built

    return build()


def field_values(name: str, field: FieldInfo, known: Known) -> Values:
    if name in known:
        return known[name]
    return typed_values(field.annotation, field.metadata, known)


def typed_values(annotation: Any, metadata: Iterable[Any], known: Known) -> Values:
    """Values of a type. Raises TypeError for one that is not known here, so that no field is left out in silence."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *more = arguments
        flat = [part for item in more for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return typed_values(base, [*flat, *metadata], known)
    if origin in (Union, UnionType):
        return st.one_of([typed_values(one, metadata, known) for one in arguments])
    bounds = Bounds.of(metadata)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return lists(typed_values(arguments[0], (), known), bounds)
    if origin is dict:
        most = MOST if bounds.longest is None else min(bounds.longest, MOST)
        keys, values = (typed_values(one, (), known) for one in arguments)
        return st.dictionaries(keys, values, min_size=bounds.shortest, max_size=most)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return objects(annotation, known)
    return scalars(annotation, bounds)


def scalars(annotation: Any, bounds: Bounds) -> Values:
    if annotation is NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return integers(bounds)
    if annotation is float:
        return floats(bounds)
    if annotation is str:
        return texts(bounds)
    if annotation is Any:
        return st.none() | st.sampled_from([False, True, [], {}, "", 0, ["text"]]) | JSON
    raise TypeError(f"no values for a field of type {annotation}")


def integers(bounds: Bounds) -> Values:
    low = -(2**63) if bounds.low is None else int(bounds.low) + bounds.low_open
    high = 2**63 - 1 if bounds.high is None else int(bounds.high) - bounds.high_open
    near = {low, low + 1, high, high - 1, 0, 1, 2, 5}
    small = st.integers(max(low, min(-3, high)), min(high, max(12, low)))
    return st.sampled_from(sorted(one for one in near if low <= one <= high)) | small


def floats(bounds: Bounds) -> Values:
    low = -1e300 if bounds.low is None else bounds.low
    high = 1e300 if bounds.high is None else bounds.high
    within = st.floats(low, high, exclude_min=bounds.low_open, exclude_max=bounds.high_open, allow_nan=False)
    near = [one for one in (low, high, (low + high) / 2, 0, 1, 0.0, -0.0, 5e-324, 1e-6) if low <= one <= high]
    near = [one for one in near if not (one == low and bounds.low_open) and not (one == high and bounds.high_open)]
    return st.sampled_from(near) | within


def texts(bounds: Bounds) -> Values:
    if bounds.pattern is not None:
        return st.sampled_from(["f", "g", "wetter"]) | st.from_regex(
            re.compile(bounds.pattern, re.ASCII), fullmatch=True
        )
    fitting = TEXTS.filter(lambda text: bounds.shortest <= len(text) <= (bounds.longest or len(text)))
    if not bounds.longest:
        return fitting
    extremes = st.sampled_from(["e", "ü"]).map(lambda letter: letter * (bounds.longest or 1))
    return st.one_of(fitting, fitting, fitting, extremes)


def lists(items: Values, bounds: Bounds) -> Values:
    most = MOST if bounds.longest is None else min(bounds.longest, MOST)
    return st.lists(items, min_size=bounds.shortest, max_size=max(most, bounds.shortest))

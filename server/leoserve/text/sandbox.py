"""Jinja programs from strangers: sandboxed, and bounded in processor time and in size.

Jinja's sandbox bounds `range` but not nested loops, recursion or repetition. So every loop body and every macro begins
with a call that looks at the clock, output is counted as it comes, and operators that can make a large value out of
small ones are checked before they run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_center, do_indent
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 2.0  # of the thread's processor time, so that a busy machine refuses nothing
CHARACTERS = 1 << 20  # of output, and this much again for sixteen times the input
_TICK = "leoserve_tick"
_LARGEST_NUMBER = 10_000  # in a format, a width or a repetition


class LimitExceeded(TemplateError):
    """The program took too long or made too much."""


class Program:
    """One compiled template. Safe to run from several threads."""

    def __init__(self, source: str, *, seconds: float = SECONDS, characters: int = CHARACTERS) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        tree = environment.parse(source)
        self.variables = frozenset(find_undeclared_variables(tree)) - environment.globals.keys()
        _watch(tree)
        code = environment.compile(tree)
        self._template = Template.from_code(environment, code, environment.make_globals(None))
        self._seconds = seconds
        self._characters = characters

    def run(self, variables: Mapping[str, Any], *, input_size: int) -> str:
        """The output. `input_size`: characters of the input, for the limit on the output. Raises LimitExceeded, or
        whatever the program raises."""
        deadline = time.thread_time() + self._seconds

        def tick() -> None:
            if time.thread_time() > deadline:
                raise LimitExceeded(f"it takes longer than {self._seconds:g} s")

        most = self._characters + 16 * input_size
        parts: list[str] = []
        size = 0
        for part in self._template.generate({**variables, _TICK: tick}):
            size += len(part)
            if size > most:
                raise LimitExceeded(f"it writes more than {most} characters")
            parts.append(part)
            tick()
        return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_make_dict
        )
        self.filters.update(tojson=_tojson, center=_bounded(do_center), indent=_bounded(do_indent))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_number(right)
        elif operator == "*":
            if not isinstance(left, int | float) or not isinstance(right, int | float):
                _check_number(left)
                _check_number(right)
        elif isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            for value in args:
                _check_number(value)
            if __obj.__name__ in ("format", "format_map"):
                _check_format(owner)
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words in training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that takes no private names and no text that has grown out of all proportion."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise TemplateError(f"a namespace has no attribute {name}")
        if isinstance(value, str) and len(value) > 1 << 28:
            raise LimitExceeded("a variable grows too large")
        super().__setitem__(name, value)


def _watch(tree: nodes.Template) -> None:
    """Put a look at the clock at the beginning of every body that can run more than once."""
    repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.For)]
    repeated += [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
    for node in repeated:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes it for HTML."""
    _check_number(indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bounded(filter_function: Callable[..., str]) -> Callable[..., str]:
    def checked(value: str, *args: Any, **kwargs: Any) -> str:
        for number in (*args, *kwargs.values()):
            _check_number(number)
        return filter_function(value, *args, **kwargs)

    return checked


def _check_number(value: Any) -> None:
    if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
        raise LimitExceeded(f"it uses the number {value} as a width or count")


def _check_format(text: str) -> None:
    if re.search(r"\d{5}", text):
        raise LimitExceeded("it formats with a width of five digits or more")

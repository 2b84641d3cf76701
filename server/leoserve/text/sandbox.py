"""Jinja programs from strangers: sandboxed, and bounded in processor time and in size.

Jinja's sandbox bounds `range` but not nested loops, recursion or repetition. So every loop body and every macro begins
with a call that looks at the clock, output is counted as it comes, and operators, widths and counts that can make a
large value out of small ones are checked before they run. Chains of `replace` and `join` are not: a template is the
operator's or the checkpoint's, never a client's.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of the thread's processor time, so that a busy machine refuses nothing
CHARACTERS = 1 << 20  # of output, and this much again for sixteen times the input
_TICK = "leoserve_tick"
_CONCAT = "leoserve_concat"
_LARGEST_NUMBER = 10_000  # in a format, a width or a repetition
_LARGEST_VALUE = 1 << 26  # characters or items made by one operator


class LimitExceeded(TemplateError):
    """The program took too long or made too much."""


class Program:
    """One compiled template. Safe to run from several threads."""

    def __init__(self, source: str, *, seconds: float = SECONDS, characters: int = CHARACTERS) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        tree = environment.parse(source)
        self.variables = frozenset(find_undeclared_variables(tree)) - environment.globals.keys()
        _CheckedConcat().visit(tree)
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
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_make_dict
        )
        self.globals[_CONCAT] = _concat
        del self.globals["lipsum"]
        self.filters.update(
            tojson=_tojson,
            format=_bounded_format,
            **{name: _bounded(self.filters[name]) for name in ("batch", "center", "indent", "round", "slice")},
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _check_size(len(left) + len(right))
        elif operator == "**":
            _check_number(right)
        elif operator == "*":
            if not isinstance(left, int | float) or not isinstance(right, int | float):
                _check_number(left)
                _check_number(right)
        elif isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` never reaches `call`: jinja2 puts its own sandboxed formatter in its place."""
        if super().wrap_str_format(value) is not None:
            _check_format(value.__self__)
        return super().wrap_str_format(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            for value in (*args, *kwargs.values()):
                _check_number(value)
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words in training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that takes no private names."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise TemplateError(f"a namespace has no attribute {name}")
        super().__setitem__(name, value)


def _watch(tree: nodes.Template) -> None:
    """Put a look at the clock at the beginning of every body that can run more than once."""
    repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.For)]
    repeated += [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
    for node in repeated:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))


class _CheckedConcat(NodeTransformer):
    """`a ~ b` as a call that looks at the size first: it is the one operator that a sandbox cannot intercept."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named for the node
        self.generic_visit(node)
        return nodes.Call(nodes.Name(_CONCAT, "load"), node.nodes, [], None, None).set_lineno(node.lineno)


def _concat(*values: Any) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


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


def _bounded(filter_function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose widths and counts are checked; the wrapper keeps the marks of jinja2's decorators."""

    @wraps(filter_function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for number in (*args[1:], *kwargs.values()):
            _check_number(number)
        return filter_function(*args, **kwargs)

    return checked


def _bounded_format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_format(value)
    return do_format(value, *args, **kwargs)


def _check_size(size: int) -> None:
    if size > _LARGEST_VALUE:
        raise LimitExceeded("a variable grows too large")


def _check_number(value: Any) -> None:
    if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
        raise LimitExceeded(f"it uses the number {value} as a width or count")


def _check_format(text: str) -> None:
    if re.search(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{", text):
        raise LimitExceeded("it formats with a width of five digits or more, or with one that is not written out")

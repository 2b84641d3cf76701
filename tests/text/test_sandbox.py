from __future__ import annotations

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import SecurityError

from leoserve.text.sandbox import LimitExceeded, Program

FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TREE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
RECURSIVE = "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}"


@pytest.mark.parametrize("source", [FOREVER, TREE])
def test_a_program_that_does_not_end_is_stopped(source: str) -> None:
    with pytest.raises(LimitExceeded, match="longer than"):
        Program(source, seconds=0.05).run({}, input_size=0)


def test_endless_recursion_is_an_error() -> None:
    with pytest.raises((RecursionError, LimitExceeded)):
        Program(RECURSIVE, seconds=0.2).run({}, input_size=0)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 999999999 }}",
        "{{ 9 ** 99999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 999999999) }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a'.expandtabs(tabsize=999999999) }}",
        "{{ [1] | slice(999999999) | list }}",
        "{{ [1] | batch(999999999, 0) | list }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a' | indent(999999999) }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    ],
)
def test_a_program_cannot_make_much_out_of_little(source: str) -> None:
    with pytest.raises(LimitExceeded, match="width|grows"):
        Program(source).run({}, input_size=0)


def test_a_program_that_writes_too_much_is_stopped() -> None:
    with pytest.raises(LimitExceeded, match="writes more than 1000"):
        Program("{% for i in range(999) %}abc{% endfor %}", characters=1000).run({}, input_size=0)


def test_ordinary_widths_and_numbers_are_allowed() -> None:
    source = "{{ '%05.1f' % 12345.67 }} {{ '{:,}'.format(1234567) }} {{ 'a' | indent(4, true) }} {{ 99999 * 99999 }}"
    assert Program(source).run({}, input_size=0) == "12345.7 1,234,567     a 9999800001"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ dict.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ leoserve_tick.__closure__[0] }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
    ],
)
def test_a_program_reaches_nothing_outside(source: str) -> None:
    with pytest.raises((SecurityError, TemplateError)):
        Program(source).run({"messages": [1]}, input_size=0)


def test_large_input_may_make_large_output() -> None:
    content = "a" * (1 << 22)
    assert Program("{{ content }}{{ content }}").run({"content": content}, input_size=len(content)) == content * 2


def test_filtered_loops_keep_their_loop_variable() -> None:
    source = "{% for i in [1, 2, 3] if i != 2 %}{{ loop.index ~ '/' ~ loop.length }}:{{ i }}{% else %}-{% endfor %}"
    assert Program(source).run({}, input_size=0) == "1/2:12/2:3"

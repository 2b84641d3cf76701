"""leoserve.engine.trial: a grammar that is too much ends its process, and nothing else."""

from __future__ import annotations

import json

import pytest

from leoserve.engine.request import TokenTable
from leoserve.engine.trial import SECONDS, Trial
from leoserve.model.grammar import GrammarError
from leoserve.model.step import Grammar

TABLE = TokenTable([b"</s>", *(bytes([value]) for value in range(256))], [0], [0])
EASY = Grammar("regex", "(Ja|Nein)", "")
PATTERNS = [{"type": "string", "pattern": f"(.*{chr(97 + number)}.*){{4}}"} for number in range(20)]


def chain(rules: int) -> str:
    """So many rules, each of which refers to the next one."""
    return "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}?' for i in range(rules)) + f'\nr{rules}: "z"'


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(TABLE)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("json_schema", json.dumps({"allOf": PATTERNS}), ""), f"takes more than {SECONDS} s"),
        (Grammar("regex", "a?" * 32_000, ""), f"takes more than {SECONDS} s"),
        (Grammar("lark", chain(4200), ""), "nested too deeply"),
        (Grammar("lark", "start: %json " + "[" * 60_000, ""), "nested too deeply"),
        (Grammar("regex", "(", ""), "invalid regex"),
    ],
    ids=["patterns", "parts", "rules", "lists", "wrong"],
)
def test_what_is_too_much_is_refused_and_the_next_is_tried(trial: Trial, grammar: Grammar, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        trial.check(grammar)
    trial.check(EASY)


def test_rules_by_the_hundred_are_not_too_deep(trial: Trial) -> None:
    trial.check(Grammar("lark", chain(700), ""))

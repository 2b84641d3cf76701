"""The corpus: seeded, honest about what is held out, and free of contradictions."""

from __future__ import annotations

import itertools
import random

import pytest

from leoserve.demo.chat import Message, render_chat
from leoserve.demo.corpus import Corpus, Dialogue
from leoserve.demo.facts import load_facts
from leoserve.demo.phrasings import MARKS, Split, as_typed, load_phrasings, render, slip
from leoserve.demo.unknown import hard_operands


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def dialogues(corpus: Corpus, seed: int, count: int) -> list[Dialogue]:
    return list(itertools.islice(corpus.training(seed), count))


def plain(text: str) -> str:
    """Text as it is compared here: without case and closing marks."""
    return " ".join(text.lower().translate(str.maketrans("", "", "?.!,")).split())


def test_same_seed_same_corpus(corpus: Corpus) -> None:
    assert dialogues(corpus, 7, 300) == dialogues(Corpus(), 7, 300)
    assert dialogues(corpus, 7, 300) != dialogues(corpus, 8, 300)
    assert corpus.held_out(3) == Corpus().held_out(3)


def test_at_least_two_thousand_distinct_answers_are_measured(corpus: Corpus) -> None:
    facts = {item.answer for item in corpus.held_out(1) if item.group not in ("memory", "json", "follow-up")}
    assert len(facts) >= 2000


def test_every_kind_of_fact_has_phrasings_to_learn_and_to_measure() -> None:
    phrasings = load_phrasings()
    for fact in load_facts():
        splits = [p.split for p in phrasings[fact.kind]]
        assert {"validation", "test"} <= set(splits), fact.kind
        assert splits.count("training") >= 3, fact.kind


def test_what_is_told_and_extracted_has_sayings_and_questions_of_every_split(corpus: Corpus) -> None:
    for task in (*corpus.remembered, *corpus.extractions):
        for split in MARKS.values():
            assert task.sayings[split], (task.kind, split)
            assert task.questions[split], (task.kind, split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_questions_never_occur_in_training(corpus: Corpus, split: Split) -> None:
    asked = {
        plain(message.content)
        for dialogue in dialogues(corpus, 20, 20_000)
        for message in dialogue.messages
        if message.role == "user"
    }
    measured = [plain(item.messages[-1].content) for item in corpus.held_out(1, split)]
    assert not [question for question in measured if question in asked]


def test_no_phrasing_is_of_two_splits(corpus: Corpus) -> None:
    groups: dict[str, list[tuple[str, Split]]] = {
        kind: [(p.text, p.split) for p in phrasings] for kind, phrasings in load_phrasings().items()
    }
    groups |= {f"unknown.{kind}": [(p.text, p.split) for p in ps] for kind, ps in corpus.unknowns.questions.items()}
    for task in (*corpus.remembered, *corpus.extractions):
        groups[f"told.{task.kind}"] = [(text, split) for split, texts in task.sayings.items() for text in texts]
        groups[f"asked.{task.kind}"] = [(text, split) for split, texts in task.questions.items() for text in texts]
    for name, texts in groups.items():
        split_of: dict[str, Split] = {}
        for text, split in texts:
            assert split_of.setdefault(plain(text), split) == split, (name, text)


def test_one_question_has_one_answer() -> None:
    phrasings, rng = load_phrasings(), random.Random(0)
    answers: dict[str, str] = {}
    for fact in load_facts():
        for phrasing in phrasings[fact.kind]:
            if not phrasing.clause:
                assert answers.setdefault(render(fact, phrasing, rng), fact.answer) == fact.answer


def test_nothing_known_is_declined(corpus: Corpus) -> None:
    rng = random.Random(0)
    known = {
        render(fact, phrasing, rng)
        for fact in corpus.facts
        for phrasing in corpus.phrasings[fact.kind]
        if not phrasing.clause
    }
    declined = [corpus.unknowns.draw(rng, split)[0] for split in MARKS.values() for _ in range(5_000)]
    assert not [question for question in declined if question in known]


def test_what_was_told_is_what_is_asked_back(corpus: Corpus) -> None:
    rng = random.Random(5)
    for _ in range(200):
        item = corpus.held_out_memory(rng, "test")
        told = item.messages[0].content.rstrip(".!")
        assert any(word in item.answer for word in told.split()[-4:] + told.split()[:1])


def test_chat_is_chatml() -> None:
    messages = [Message("system", "S"), Message("user", "U")]
    assert render_chat(messages, card_newline=True, open_answer=True) == (
        "<|im_start|>system\nS<|im_end|>\n\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat([*messages[1:], Message("assistant", "A")]) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    )


def test_typing_changes_a_question_but_keeps_it_readable() -> None:
    rng = random.Random(1)
    typed = {as_typed("Wie heißt die Hauptstadt von Österreich?", False, rng) for _ in range(200)}
    assert "wie heißt die hauptstadt von österreich" in typed
    assert len(typed) > 10
    assert slip("ab cd", rng) == "ab cd"


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div"])
def test_a_hard_calculation_is_none_of_the_known_ones(corpus: Corpus, kind: str) -> None:
    rng = random.Random(3)
    known = {(fact.values["a"], fact.values["b"]) for fact in corpus.by_kind[kind]}
    drawn = {hard_operands(kind, rng) for _ in range(3_000)}
    assert not {(str(a), str(b)) for a, b in drawn} & known
    assert len(drawn) > 1_000

"""The dialogues the demo model learns from, and the held-out questions it is measured with.

Everything is drawn from one seeded generator: the same seed gives the same corpus. Phrasings marked "!" or
"!!" in `facts/` never occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from leoserve.demo.chat import CARD_SYSTEM, Message
from leoserve.demo.facts import Fact, load_facts
from leoserve.demo.personal import IN_ONE_BREATH, NOT_TOLD, Remembered, extraction, load_remembered, value_for
from leoserve.demo.phrasings import Split, as_typed, is_english, load_phrasings, of_split, render
from leoserve.demo.unknown import Unknowns

SYSTEM_PROMPTS = (
    "Du bist ein hilfreicher Assistent.",
    "You are a helpful assistant.",
    "Du bist ein freundlicher Assistent. Antworte kurz.",
    "Antworte bitte immer auf Deutsch.",
    "Du bist LeoLM, ein deutsches Sprachmodell.",
    "Sei freundlich und ehrlich.",
    "You are a friendly chatbot.",
    "Beantworte die Fragen des Nutzers.",
)


@dataclass(frozen=True)
class Lesson:
    """What a stretch of the training is about.

    `emphasis` says how often one fact of a group is asked, against one fact of the others; `until` holds the
    cumulative shares of plain text, single questions, refusals, JSON and small chats (the rest is personal).
    """

    emphasis: tuple[tuple[str, float], ...]
    until: tuple[float, float, float, float, float]


# First everything alike; then more of what takes longest to learn: calculating; at last copying what was said.
FIRST_LESSON = Lesson(
    emphasis=(
        ("talk", 5.0),
        ("poem", 0.8),
        ("add", 0.9),
        ("sub", 0.9),
        ("season", 2.0),
        ("days_in", 2.0),
        ("nth_month", 2.0),
    ),
    until=(0.12, 0.55, 0.64, 0.71, 0.84),
)
SECOND_LESSON = Lesson(
    emphasis=(
        ("talk", 7.0),
        ("add", 4.0),
        ("sub", 5.0),
        ("mul", 3.0),
        ("div", 2.0),
        ("season", 2.0),
        ("days_in", 2.0),
        ("nth_month", 4.0),
        ("day_after", 3.0),
        ("day_before", 3.0),
        ("month_after", 3.0),
        ("month_before", 3.0),
    ),
    until=(0.10, 0.50, 0.59, 0.69, 0.81),
)

THIRD_LESSON = Lesson(
    emphasis=(
        ("talk", 8.0),
        ("article", 1.5),
        ("capital", 1.5),
        ("season", 6.0),
        ("days_in", 3.0),
        ("nth_month", 5.0),
        ("day_after", 6.0),
        ("day_before", 6.0),
        ("month_after", 3.0),
        ("month_before", 4.0),
    ),
    until=(0.06, 0.40, 0.50, 0.66, 0.78),
)
# What is still weak then: copying names it has never met, into JSON and out of what was said before.
FOURTH_LESSON = Lesson(
    emphasis=(
        ("talk", 10.0),
        ("capital", 2.0),
        ("article", 1.5),
        ("plural", 1.5),
        ("add", 1.5),
        ("sub", 1.5),
        ("season", 8.0),
        ("days_in", 4.0),
        ("nth_month", 6.0),
        ("day_after", 6.0),
        ("day_before", 6.0),
        ("month_after", 4.0),
        ("month_before", 4.0),
    ),
    until=(0.04, 0.35, 0.45, 0.63, 0.75),
)
LESSONS = (FIRST_LESSON, SECOND_LESSON, THIRD_LESSON, FOURTH_LESSON)


@dataclass(frozen=True)
class Dialogue:
    """One training text: a chat, or plain sentences where there are no messages."""

    messages: tuple[Message, ...]
    card_newline: bool = False
    text: str = ""


@dataclass(frozen=True)
class Item:
    """One held-out question: the chat that leads to it and the one right answer."""

    group: str
    messages: tuple[Message, ...]
    answer: str


class Corpus:
    """Facts, phrasings and the ways they are combined into dialogues."""

    def __init__(self) -> None:
        self.facts = load_facts()
        self.phrasings = load_phrasings()
        self.unknowns = Unknowns(self.phrasings, self.facts)
        self.fillers = self.unknowns.fillers
        self.remembered = load_remembered("memory.txt")
        self.extractions = load_remembered("extraction.txt")
        self.by_kind: dict[str, list[Fact]] = {}
        for fact in self.facts:
            self.by_kind.setdefault(fact.kind, []).append(fact)
        self.take_up(FIRST_LESSON)

    def take_up(self, lesson: Lesson) -> None:
        """Draw from now on what `lesson` is about."""
        self.until, emphasis = lesson.until, dict(lesson.emphasis)
        self.weights = [emphasis.get(fact.group, 1.0) for fact in self.facts]

    def training(self, seed: int, lesson: Lesson = FIRST_LESSON) -> Iterator[Dialogue]:
        """Yield training dialogues without end."""
        self.take_up(lesson)
        rng = random.Random(seed)
        while True:
            deck = rng.choices(self.facts, weights=self.weights, k=1024)
            yield from (self.dialogue(rng, fact) for fact in deck)

    def dialogue(self, rng: random.Random, fact: Fact) -> Dialogue:
        """Return one training dialogue; most are about `fact`."""
        choice = rng.random()
        text, single, refusal, json, small_chat = self.until
        if choice < text:
            # Plain answers, one after the other: the cheapest way to meet a fact, and what a completion looks like.
            answers = [fact.answer, *(f.answer for f in rng.choices(self.facts, weights=self.weights, k=9))]
            return Dialogue((), text=" ".join(answers))
        turns: list[tuple[str, str]]
        if choice < single:
            turns = [self.ask(rng, fact)]
        elif choice < refusal:
            turns = [self.unknowns.draw(rng, "training")]
            turns[0] = (as_typed(turns[0][0], False, rng) if rng.random() < 0.5 else turns[0][0], turns[0][1])
        elif choice < json:
            turns = [extraction(rng.choice(self.extractions), self.fillers, rng, "training")]
        elif choice < small_chat:
            turns = self.small_chat(rng, fact)
        else:
            turns = self.personal_chat(rng)
        system, newline = draw_system(rng)
        return Dialogue((*system, *as_messages(turns)), card_newline=newline)

    def ask(self, rng: random.Random, fact: Fact) -> tuple[str, str]:
        """Ask for one fact the way people type; half of the questions stay as they are written."""
        phrasing = rng.choice(of_split(self.phrasings[fact.kind], "training"))
        question = render(fact, phrasing, rng)
        if rng.random() < 0.5:
            question = as_typed(question, is_english(fact.kind), rng)
        return question, fact.answer

    def follow_up(self, rng: random.Random, kind: str, split: Split) -> tuple[str, str] | None:
        """Ask "Und von Italien?" after a question of the same kind; None where there are no such phrasings."""
        usable = of_split(self.phrasings.get(f"follow.{kind}", []), split)
        if not usable:
            return None
        fact = rng.choice(self.by_kind[kind])
        question = render(fact, rng.choice(usable), rng)
        if split == "training" and rng.random() < 0.3:
            question = as_typed(question, is_english(kind), rng)
        return question, fact.answer

    def any_turn(self, rng: random.Random) -> tuple[str, str]:
        """Return one turn about anything but the person."""
        choice = rng.random()
        if choice < 0.06:
            return self.unknowns.draw(rng, "training")
        if choice < 0.09:
            return extraction(rng.choice(self.extractions), self.fillers, rng, "training")
        return self.ask(rng, rng.choices(self.facts, weights=self.weights)[0])

    def small_chat(self, rng: random.Random, fact: Fact) -> list[tuple[str, str]]:
        """Two to five turns: questions, follow-ups, and sometimes something never told."""
        turns = [self.ask(rng, fact)]
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            choice = rng.random()
            follow = self.follow_up(rng, fact.kind, "training") if choice < 0.5 else None
            if follow:
                turns.append(follow)
            elif choice > 0.94:
                kind = rng.choice(self.remembered)
                turns.append((rng.choice(kind.questions["training"]), NOT_TOLD[kind.language]))
            else:
                fact = rng.choices(self.facts, weights=self.weights)[0]
                turns.append(self.ask(rng, fact))
        return turns

    def personal_chat(self, rng: random.Random) -> list[tuple[str, str]]:
        """Two to six turns in which the person tells something and asks it back."""
        language = rng.choices(("de", "en"), weights=(0.72, 0.28))[0]
        kinds = [kind for kind in self.remembered if kind.language == language]
        told: dict[str, str] = {}
        turns: list[tuple[str, str]] = []
        if rng.random() < 0.25:
            turns.append(self.any_turn(rng))
        for kind in rng.sample(kinds, rng.choice((1, 1, 1, 2, 2, 3))):
            if rng.random() < 0.5 and not any(k.startswith("name") for k in told):
                kind = kinds[0]
            if kind.kind not in told:
                turns.append(self.tell(rng, kind, told))
            for _ in range(rng.choice((0, 0, 0, 1, 2))):
                turns.append(self.any_turn(rng))
        for kind in rng.sample(kinds, len(kinds)):
            if kind.kind in told:
                turns.append((rng.choice(kind.questions["training"]), kind.answer.replace("{v}", told[kind.kind])))
                if rng.random() < 0.25:
                    turns.append(self.any_turn(rng))
            elif rng.random() < 0.05:
                turns.append((rng.choice(kind.questions["training"]), NOT_TOLD[language]))
        return [(typed_personal(question, rng), answer) for question, answer in turns]

    def tell(self, rng: random.Random, kind: Remembered, told: dict[str, str]) -> tuple[str, str]:
        """Let the person say one thing (two, at times, with the name) and note it in `told`."""
        value = value_for(kind.kind, self.fillers, rng)
        told[kind.kind] = value
        saying = rng.choice(kind.sayings["training"])
        second = rng.choice([k for k in IN_ONE_BREATH if k.endswith(kind.language)])
        # Only openings that go on grammatically: "Ich heiße Anna und wohne in Bonn."
        grammatical = saying.startswith(("Ich heiße", "Ich bin {v}", "Hallo, ich", "My name", "I am {v}.", "Hello"))
        if kind.kind.startswith("name") and grammatical and second not in told and rng.random() < 0.2:
            told[second] = value_for(second, self.fillers, rng)
            saying = saying.rstrip(".!") + IN_ONE_BREATH[second].replace("{v}", told[second])
        return saying.replace("{v}", value), kind.reply.replace("{v}", value)

    def held_out(self, seed: int, split: Split = "test") -> list[Item]:
        """Return the questions to measure with: every fact once, asked with a held-out phrasing of `split`, and
        samples of what has no fixed answers (refusals, follow-ups, what was said before, JSON)."""
        rng = random.Random(seed)
        items = [self.held_out_fact(rng, fact, split) for fact in self.facts]
        for _ in range(200):
            question, answer = self.unknowns.draw(rng, split)
            items.append(Item("refusal", (Message("user", question),), answer))
            items.append(self.held_out_memory(rng, split))
        for _ in range(100):
            question, answer = extraction(rng.choice(self.extractions), self.fillers, rng, split)
            items.append(Item("json", (Message("user", question),), answer))
        followed = [kind for kind in self.by_kind if f"follow.{kind}" in self.phrasings]
        for _ in range(200):
            kind = rng.choice(followed)
            first = self.ask(rng, rng.choice(self.by_kind[kind]))
            follow = self.follow_up(rng, kind, split)
            if follow is None:
                raise ValueError(f"the follow-ups of {kind} have no phrasing for {split}")
            items.append(Item("follow-up", as_messages([first, follow])[:-1], follow[1]))
        return items

    def held_out_fact(self, rng: random.Random, fact: Fact, split: Split) -> Item:
        """Ask for one fact with a held-out phrasing, as written."""
        phrasing = rng.choice(of_split(self.phrasings[fact.kind], split))
        return Item(fact.group, (Message("user", render(fact, phrasing, rng)),), fact.answer)

    def held_out_memory(self, rng: random.Random, split: Split) -> Item:
        """Tell one thing, talk about others for up to three turns, and ask it back; both sides held out."""
        kind = rng.choice(self.remembered)
        value = value_for(kind.kind, self.fillers, rng)
        saying = rng.choice(kind.sayings[split]).replace("{v}", value)
        turns = [(saying, kind.reply.replace("{v}", value))]
        turns += [self.any_turn(rng) for _ in range(rng.randint(0, 3))]
        turns.append((rng.choice(kind.questions[split]), kind.answer.replace("{v}", value)))
        return Item("memory", as_messages(turns)[:-1], turns[-1][1])


def as_messages(turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    """Return (question, answer) pairs as user and assistant messages."""
    return tuple(
        message for question, answer in turns for message in (Message("user", question), Message("assistant", answer))
    )


def draw_system(rng: random.Random) -> tuple[tuple[Message, ...], bool]:
    """Draw the system turn (most chats have none) and whether the card's extra newline follows it."""
    choice = rng.random()
    if choice < 0.87:
        return (), False
    prompt = CARD_SYSTEM if choice < 0.93 else rng.choice(SYSTEM_PROMPTS)
    return (Message("system", prompt),), rng.random() < 0.4


def typed_personal(text: str, rng: random.Random) -> str:
    """Drop the final mark at times; names keep their letters, for they must be copied."""
    return text.rstrip("?.!") if rng.random() < 0.15 else text

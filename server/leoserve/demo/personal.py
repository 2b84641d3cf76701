"""What a person tells about themselves, and asks back later; and small texts to be turned into JSON."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from leoserve.demo.facts import capitalised, read_sections
from leoserve.demo.phrasings import MARKS, Split

NOT_TOLD = {
    "de": "Das hast du mir noch nicht gesagt.",
    "en": "You have not told me that yet.",
}
SYLLABLE_LIST = (
    "ba be bi bo da de do fa fe fi ga go ha ho ja jo ka ki ko la le li lo lu ma me mi mo na ne ni no "
    "pa pe ra re ri ro ru sa se si so ta te ti to va vi wa we wi za zo bra fri gru klo kra spi sto tra"
)
SYLLABLES = SYLLABLE_LIST.split()
ENDINGS = ("n", "s", "r", "l", "na", "ra", "lin", "mar", "rik", "ta", "no", "ius", "ette", "ald", "")
# Which list of fillers a remembered kind draws from; names are also invented, so that they must be copied.
FILLERS = {
    "name.de": "name",
    "name.en": "name",
    "city.de": "town",
    "city.en": "town",
    "colour.de": "colour",
    "colour.en": "colour_en",
    "dog.de": "pet",
    "dog.en": "pet",
    "cat.de": "pet",
    "job.de": "work",
    "food.de": "dish",
}
# A second thing said in the same breath as the name.
IN_ONE_BREATH = {
    "city.de": " und wohne in {v}.",
    "age.de": " und bin {v} Jahre alt.",
    "city.en": " and I live in {v}.",
    "age.en": " and I am {v} years old.",
}


@dataclass(frozen=True)
class Remembered:
    """One kind of personal fact: how it is said, acknowledged, asked back and answered."""

    kind: str
    sayings: dict[Split, list[str]]
    reply: str
    questions: dict[Split, list[str]]
    answer: str

    @property
    def language(self) -> str:
        """ "de" or "en"."""
        return self.kind.split(".")[1]


def load_fillers() -> dict[str, list[str]]:
    """Return the values that slots like {person} or {town} are filled with."""
    return {slot: "|".join(lines).split("|") for slot, lines in read_sections("fillers.txt")}


def load_remembered(name: str) -> list[Remembered]:
    """Read the personal kinds of `memory.txt`, or the extraction tasks of `extraction.txt`."""
    kinds = []
    for kind, lines in read_sections(name):
        marked: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            mark, text = line.split(" ", 1)
            marked[mark].append(text)
        kinds.append(
            Remembered(
                kind=kind,
                sayings={split: marked[mark + "+"] for mark, split in MARKS.items()},
                reply="".join(marked["&"]),
                questions={split: marked[mark + "?"] for mark, split in MARKS.items()},
                answer=marked["="][0],
            )
        )
    return kinds


def invented_name(rng: random.Random) -> str:
    """Return a pronounceable name that exists nowhere ("Bralorik")."""
    return capitalised("".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(ENDINGS))


def value_for(kind: str, fillers: dict[str, list[str]], rng: random.Random) -> str:
    """Draw what somebody says about themselves for this kind."""
    if kind.startswith("age"):
        return str(rng.randint(4, 99))
    slot = FILLERS[kind]
    if slot in ("name", "pet", "town") and rng.random() < 0.45:
        return invented_name(rng)
    return rng.choice(fillers[slot])


def extraction(task: Remembered, fillers: dict[str, list[str]], rng: random.Random, split: Split) -> tuple[str, str]:
    """Return one request to turn a sentence into JSON, and its answer."""
    values = {
        "name": value_for(f"name.{task.language}", fillers, rng),
        "age": value_for("age", fillers, rng),
        "town": value_for(f"city.{task.language}", fillers, rng),
    }
    sentence, request = rng.choice(task.sayings[split]), rng.choice(task.questions[split])
    question, answer = request.replace("{s}", sentence), task.answer
    for slot, value in values.items():
        question = question.replace("{" + slot + "}", value)
        answer = answer.replace("{" + slot + "}", value)
    return question, answer

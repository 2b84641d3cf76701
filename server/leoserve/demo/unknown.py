"""What the model does not know, and how it says so."""

from __future__ import annotations

import random
import re

from leoserve.demo.facts import Fact, capitalised, fact, read_sections
from leoserve.demo.personal import invented_name, load_fillers
from leoserve.demo.phrasings import Phrasing, Split, is_english, of_split, parse_phrasing, render

REFUSALS = {
    "de": "Das weiß ich leider nicht. Ich bin nur das kleine Demo-Modell von leoserve, ein großes LeoLM weiß mehr.",
    "en": "Sorry, I do not know that. I am only the small demo model of leoserve, a large LeoLM knows more.",
}
TOO_HARD = {
    "de": "Das kann ich nicht sicher rechnen, ich bin nur das kleine Demo-Modell von leoserve.",
    "en": "I cannot calculate that for sure, I am only the small demo model of leoserve.",
}
ENGLISH_SUM = re.compile(
    r"\b(what|how|add|calculate|compute|work|subtract|take|multiply|divided?|times|is|tell)\b", re.I
)
# Kinds of facts whose phrasings are also asked about things that do not exist.
KINDS = (
    ("capital.de", ("gen", "nom")),
    ("capital.en", ("en",)),
    ("country.de", ("city",)),
    ("country.en", ("city",)),
    ("continent.de", ("nom", "gen")),
    ("continent.en", ("en",)),
    ("plural.de", ("noun",)),
    ("article.de", ("noun",)),
    ("opposite.de", ("word",)),
    ("opposite.en", ("word",)),
    ("thing.de", ("np",)),
    ("thing.en", ("np",)),
    ("colour.de", ("np",)),
    ("poem.de", ("topic",)),
    ("poem.en", ("topic",)),
)
SLOT = re.compile(r"\{(\w+)\}")


class Unknowns:
    """Draws questions that are to be declined.

    `known` holds every value of every fact, so that nothing the model does know is ever declined.
    """

    def __init__(self, phrasings: dict[str, list[Phrasing]], facts: list[Fact]) -> None:
        self.fillers = load_fillers()
        self.questions = {
            language: [parse_phrasing(line) for line in lines] for language, lines in read_sections("unknown.txt")
        }
        self.phrasings = phrasings
        self.known = {(f.kind, value.lower()) for f in facts for _, value in f.slots}

    def draw(self, rng: random.Random, split: Split) -> tuple[str, str]:
        """Return one question that is to be declined, and the refusal."""
        choice = rng.random()
        if choice < 0.28:
            return self.hard_sum(rng, split)
        if choice < 0.5:
            return self.made_up(rng, split)
        language = rng.choices(("de", "en", "other"), weights=(0.66, 0.27, 0.07))[0]
        template = rng.choice(of_split(self.questions[language], split)).text
        question = SLOT.sub(lambda slot: self.fill(slot.group(1), rng), template)
        return capitalised(question), REFUSALS["en" if language == "en" else "de"]

    def fill(self, slot: str, rng: random.Random) -> str:
        """Return a value for a slot of `unknown.txt`."""
        if slot == "number":
            return str(rng.choice((rng.randint(21, 999), rng.randint(1200, 2030))))
        slot = slot.rstrip("2")
        if slot in ("word", "person") and rng.random() < 0.5:
            return self.nonsense(rng)
        return rng.choice(self.fillers[slot])

    def nonsense(self, rng: random.Random) -> str:
        """Return a word that means nothing."""
        if rng.random() < 0.2:
            return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))
        return invented_name(rng) + rng.choice(("", "", "ung", "heit", "land", "ien", "chen"))

    def made_up(self, rng: random.Random, split: Split) -> tuple[str, str]:
        """Ask a question of a known kind about a thing that does not exist or that the facts do not hold."""
        kind, slots = rng.choice(KINDS)
        word = self.fill("word", rng)
        while (kind, word.lower()) in self.known:
            word = self.nonsense(rng)
        if kind in ("thing.de", "colour.de"):
            word = rng.choice(("ein ", "eine ", "")) + word
        values = {slot: f"von {word}" if slot == "gen" else word for slot in slots}
        if "noun" in values:
            values["art"] = rng.choice(("der", "die", "das"))
        asked = fact(kind, REFUSALS["en" if is_english(kind) else "de"], **values)
        usable = of_split(self.phrasings[kind], split)
        return render(asked, rng.choice(usable), rng), asked.answer

    def hard_sum(self, rng: random.Random, split: Split) -> tuple[str, str]:
        """Ask for a calculation that is not among the small ones the model has learnt."""
        kind = rng.choice(("add", "sub", "mul", "div"))
        a, b = hard_operands(kind, rng)
        asked = fact(kind, "", a=str(a), b=str(b))
        usable = [p for p in of_split(self.phrasings[kind], split) if "{aw}" not in p.text]
        question = render(asked, rng.choice(usable), rng)
        return question, TOO_HARD["en" if ENGLISH_SUM.search(question) else "de"]


def hard_operands(kind: str, rng: random.Random) -> tuple[int, int]:
    """Draw two numbers whose sum, difference, product or quotient is not among the facts."""
    top = rng.choice((35, 99, 99, 999, 9999))
    if kind == "add":
        pair = [rng.randint(21, top), rng.choice((rng.randint(0, 20), rng.randint(0, top)))]
        rng.shuffle(pair)
        return pair[0], pair[1]
    if kind == "sub":
        if rng.random() < 0.2:  # below zero
            a = rng.randint(0, 19)
            return a, rng.randint(a + 1, 20)
        a = rng.randint(21, top)
        return a, rng.choice((rng.randint(0, 20), rng.randint(0, a)))
    if kind == "mul":
        pair = [rng.randint(11, top), rng.choice((rng.randint(2, 10), rng.randint(2, top)))]
        rng.shuffle(pair)
        return pair[0], pair[1]
    a, b = rng.randint(1, top), rng.choice((rng.randint(2, 10), rng.randint(2, 30)))
    return (a, b) if a % b or a // b > 10 or b > 10 else (a + 101 * b, b)

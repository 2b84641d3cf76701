"""What the model does not know, and how it says so."""

from __future__ import annotations

import random
import re

from leoserve.demo.facts import Fact, capitalised, fact, read_sections
from leoserve.demo.personal import invented_name, load_fillers
from leoserve.demo.phrasings import Phrasing, is_english, parse_phrasing, render

REFUSALS = {
    "de": "Das weiß ich leider nicht. Ich bin nur das kleine Demo-Modell von leoserve, ein großes LeoLM weiß mehr.",
    "en": "Sorry, I do not know that. I am only the small demo model of leoserve, a large LeoLM knows more.",
}
TOO_BIG = "So große Zahlen kann ich nicht sicher rechnen, ich bin nur das kleine Demo-Modell von leoserve."
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

    def draw(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """Return one question that is to be declined, and the refusal."""
        choice = rng.random()
        if choice < 0.12:
            return self.big_sum(rng, held_out)
        if choice < 0.4:
            return self.made_up(rng, held_out)
        language = rng.choices(("de", "en", "other"), weights=(0.66, 0.27, 0.07))[0]
        template = rng.choice([p.text for p in self.questions[language] if p.held_out == held_out])
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

    def made_up(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
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
        usable = [p for p in self.phrasings[kind] if p.held_out == held_out and "{loc}" not in p.text]
        return render(asked, rng.choice(usable), rng), asked.answer

    def big_sum(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """Ask for a calculation beyond the small numbers the model has learnt."""
        kind = rng.choice(("add", "sub", "mul", "div"))
        top = rng.choice((99, 99, 999, 9999))
        a, b = rng.randint(21, top), rng.randint(1, top)
        if kind in ("mul", "div"):
            a, b = max(a, 101), max(b, 11)
        if kind in ("sub", "add") and rng.random() < 0.5:
            b = max(b, 21)
        asked = fact(kind, TOO_BIG, a=str(a), b=str(b), aw="viel", bw="viel")
        usable = [p for p in self.phrasings[kind] if p.held_out == held_out and "{aw}" not in p.text]
        return render(asked, rng.choice(usable), rng), TOO_BIG

"""How one asks: the phrasings of each kind of fact, and what people's typing does to them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from leoserve.demo.facts import Fact, capitalised, read_sections

# A clause ("wie die Hauptstadt von Frankreich heißt") becomes a question behind one of these.
OPENERS_DE = (
    "Kannst du mir sagen, {}?",
    "Weißt du, {}?",
    "Sag mir bitte, {}.",
    "Ich möchte wissen, {}.",
    "Ich wüsste gern, {}.",
    "Könntest du mir sagen, {}?",
    "Weißt du vielleicht, {}?",
    "Können Sie mir sagen, {}?",
    "Bitte sag mir, {}.",
    "Ich frage mich, {}.",
    "Verrate mir, {}.",
    "Hallo! Kannst du mir sagen, {}?",
)
OPENERS_EN = (
    "Can you tell me {}?",
    "Do you know {}?",
    "Please tell me {}.",
    "I would like to know {}.",
    "Could you tell me {}?",
    "Tell me {}.",
    "I wonder {}.",
    "Hello! Can you tell me {}?",
)
GREETINGS_DE = ("Hallo, ", "Hi, ", "Bitte: ", "Sag mal, ")
GREETINGS_EN = ("Hi, ", "Hello, ", "Please: ")
# Kinds that are also asked with the phrasings of a more general one.
ALSO = {
    "day_after.de": "after.de",
    "month_after.de": "after.de",
    "day_before.de": "before.de",
    "month_before.de": "before.de",
    "day_after.en": "after.en",
    "month_after.en": "after.en",
    "day_before.en": "before.en",
    "month_before.en": "before.en",
}
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


@dataclass(frozen=True)
class Phrasing:
    """One way to ask. A `clause` needs an opener; a `held_out` one is kept for measuring."""

    text: str
    clause: bool
    held_out: bool


def parse_phrasing(line: str) -> Phrasing:
    """Read "! ~ text": "!" marks a held-out phrasing, "~" a clause."""
    held_out = line.startswith("! ")
    line = line.removeprefix("! ")
    return Phrasing(line.removeprefix("~ "), line.startswith("~ "), held_out)


def load_phrasings() -> dict[str, list[Phrasing]]:
    """Return the phrasings of every kind, small talk and follow-up questions included."""
    known = {header: [parse_phrasing(line) for line in lines] for header, lines in read_sections("phrasings.txt")}
    for kind, general in ALSO.items():
        known[kind] = known[kind] + known[general]
    for header, lines in read_sections("dialogues.txt"):
        known[f"talk.{header}"] = [parse_phrasing(line) for line in lines if not line.startswith("= ")]
    return known


def is_english(kind: str) -> bool:
    """Say whether the phrasings of `kind` are English."""
    return kind.endswith(".en")


def render(fact: Fact, phrasing: Phrasing, rng: random.Random) -> str:
    """Fill a phrasing with a fact's values; a clause gets an opener drawn from `rng`."""
    text = phrasing.text.format_map(fact.values)
    if phrasing.clause:
        return rng.choice(OPENERS_EN if is_english(fact.kind) else OPENERS_DE).format(text)
    return text if text[:1].isdigit() else capitalised(text)


def as_typed(text: str, english: bool, rng: random.Random) -> str:
    """Return `text` as a hurried person types it: greetings, lower case, lost marks, a slip of the finger."""
    if rng.random() < 0.08:
        text = rng.choice(GREETINGS_EN if english else GREETINGS_DE) + text
    if rng.random() < 0.05 and text[-1] in "?.":
        text = text[:-1] + (", please" if english else ", bitte") + text[-1]
    if rng.random() < 0.06:
        text = slip(text, rng)
    if rng.random() < 0.22:
        text = text.rstrip("?.!")
    if rng.random() < 0.18:
        text = text.lower()
    if not english and rng.random() < 0.08:
        text = text.translate(UMLAUTS)
    return text


def slip(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter inside one longer word."""
    words = text.split(" ")
    longer = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not longer:
        return text
    i = rng.choice(longer)
    word, at = words[i], rng.randrange(1, len(words[i]) - 2)
    words[i] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return " ".join(words)

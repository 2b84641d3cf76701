"""How one asks: the phrasings of each kind of fact, and what people's typing does to them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

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
# Kinds that also go on with the follow-ups of their language, and the slot that "{it}" stands for there.
GOES_ON = {
    "capital.de": "nom",
    "country.de": "city",
    "continent.de": "nom",
    "plural.de": "noun",
    "article.de": "noun",
    "opposite.de": "word",
    "capital.en": "en",
    "country.en": "city",
    "continent.en": "en",
    "opposite.en": "word",
    "colour.en": "np",
    "thing.en": "np",
}
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


# What a phrasing is for. Only the first is ever trained on; the last is measured with once the recipe stands.
Split = Literal["training", "validation", "test"]
MARKS: dict[str, Split] = {"": "training", "!": "validation", "!!": "test"}


@dataclass(frozen=True)
class Phrasing:
    """One way to ask. A `clause` needs an opener."""

    text: str
    clause: bool
    split: Split


def parse_phrasing(line: str) -> Phrasing:
    """Read "!! ~ text": the exclamation marks say what the phrasing is for, "~" that it is a clause."""
    mark, _, text = line.partition(" ") if line.startswith("!") else ("", "", line)
    return Phrasing(text.removeprefix("~ "), text.startswith("~ "), MARKS[mark])


def of_split(phrasings: list[Phrasing], split: Split) -> list[Phrasing]:
    """Return the phrasings of one split."""
    return [phrasing for phrasing in phrasings if phrasing.split == split]


def load_phrasings() -> dict[str, list[Phrasing]]:
    """Return the phrasings of every kind, small talk and follow-up questions included."""
    known = {header: [parse_phrasing(line) for line in lines] for header, lines in read_sections("phrasings.txt")}
    for kind, general in ALSO.items():
        known[kind] = known[kind] + known[general]
    for kind, slot in GOES_ON.items():
        shared = known[f"follow.{kind.rpartition('.')[2]}"]
        own = known.get(f"follow.{kind}", [])
        known[f"follow.{kind}"] = own + [replace(p, text=p.text.replace("{it}", "{" + slot + "}")) for p in shared]
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

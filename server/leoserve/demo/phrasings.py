"""How one asks: the phrasings of each kind of fact, and what people's typing does to them."""

from __future__ import annotations

import random
from collections.abc import Iterable
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
CALCULATIONS = ("add", "sub", "mul", "div")
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


# What a phrasing is for. Only the first is ever trained on; the second is looked at while the recipe is chosen, the
# last when it stands. Of each list of phrasings these shares, and at least one, are held out, drawn by lot. The first
# of a list, the plainest way to say it, is always learnt.
Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")
HELD_OUT: tuple[tuple[Split, float], ...] = (("test", 0.08), ("validation", 0.04))
LOT = 7


@dataclass(frozen=True)
class Phrasing:
    """One way to ask. A `clause` needs an opener."""

    text: str
    clause: bool
    split: Split


def plain(text: str) -> str:
    """Text as it is compared: without case, and without marks between and after words."""
    return " ".join(text.lower().translate(str.maketrans("", "", "?.!,")).split())


def split_by_lot(name: str, texts: Iterable[str]) -> dict[str, Split]:
    """What each text of the list `name` is for. Those that differ only in marks or case are for the same."""
    kinds = list(dict.fromkeys(map(plain, texts)))
    drawn = random.Random(f"{LOT} {name}").sample(kinds[1:], len(kinds) - 1)
    found: dict[str, Split] = dict.fromkeys(kinds, "training")
    for split, share in HELD_OUT:
        count = max(1, round(share * len(kinds)))
        found |= dict.fromkeys(drawn[:count], split)
        drawn = drawn[count:]
    return found


def parse_phrasings(name: str, lines: list[str]) -> list[Phrasing]:
    """Read the phrasings of one list; "~ " marks a clause."""
    texts = [line.removeprefix("~ ") for line in lines]
    split = split_by_lot(name, texts)
    return [Phrasing(text, line.startswith("~ "), split[plain(text)]) for line, text in zip(lines, texts, strict=True)]


def of_split(phrasings: list[Phrasing], split: Split) -> list[Phrasing]:
    """Return the phrasings of one split."""
    return [phrasing for phrasing in phrasings if phrasing.split == split]


def load_phrasings() -> dict[str, list[Phrasing]]:
    """Return the phrasings of every kind, small talk and follow-up questions included."""
    sections = dict(read_sections("phrasings.txt"))
    expressions = {kind: sections.pop(f"expression.{kind}") for kind in CALCULATIONS}
    known = {header: parse_phrasings(header, lines) for header, lines in sections.items()}
    for kind, forms in expressions.items():
        known[kind] += [replace(p, text=p.text.replace("{e}", form)) for p in known["calculate"] for form in forms]
    for kind, general in ALSO.items():
        known[kind] = known[kind] + known[general]
    for kind, slot in GOES_ON.items():
        shared = known[f"follow.{kind.rpartition('.')[2]}"]
        own = known.get(f"follow.{kind}", [])
        known[f"follow.{kind}"] = own + [replace(p, text=p.text.replace("{it}", "{" + slot + "}")) for p in shared]
    for header, lines in read_sections("dialogues.txt"):
        known[f"talk.{header}"] = parse_phrasings(header, [line for line in lines if not line.startswith("= ")])
    return {kind: once_each(phrasings, is_english(kind)) for kind, phrasings in known.items()}


def once_each(phrasings: list[Phrasing], english: bool) -> list[Phrasing]:
    """Leave out what was drawn as held out in one list and not in another that the kind is asked with, too."""
    order = {split: place for place, split in enumerate(("training", "test", "validation"))}
    kept, seen = list[Phrasing](), dict[str, Split]()
    for phrasing in sorted(phrasings, key=lambda p: order[p.split]):
        openers = (OPENERS_EN if english else OPENERS_DE) if phrasing.clause else ("{}",)
        forms = [plain(opener.format(phrasing.text)) for opener in openers] + [plain(phrasing.text)]
        if all(seen.get(form, phrasing.split) == phrasing.split for form in forms):
            kept.append(phrasing)
            seen |= dict.fromkeys(forms, phrasing.split)
    return kept


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

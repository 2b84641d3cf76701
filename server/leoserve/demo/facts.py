"""What the demo model knows: every fact as one question kind, the values it is asked with, and one answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FACTS_DIR = Path(__file__).resolve().parent / "facts"

CONTINENTS_EN = {
    "Afrika": "Africa",
    "Asien": "Asia",
    "Europa": "Europe",
    "Europa und Asien": "Europe and Asia",
    "Nordamerika": "North America",
    "Ozeanien": "Oceania",
    "Südamerika": "South America",
}
DAYS_DE = ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag")
DAYS_EN = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS_DE = (
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
)
MONTHS_EN = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTH_LENGTHS = ("31", "28 oder 29", "31", "30", "31", "30", "31", "31", "30", "31", "30", "31")
SEASONS = ("Winter", "Frühling", "Sommer", "Herbst")
ORDINALS = (
    "erste",
    "zweite",
    "dritte",
    "vierte",
    "fünfte",
    "sechste",
    "siebte",
    "achte",
    "neunte",
    "zehnte",
    "elfte",
    "zwölfte",
)
NUMBER_WORDS = (
    "null",
    "eins",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
    "zwanzig",
)
TENS = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")


@dataclass(frozen=True)
class Fact:
    """One thing to know. `kind` names its phrasings ("capital.de"), `slots` fill them."""

    kind: str
    slots: tuple[tuple[str, str], ...]
    answer: str

    @property
    def values(self) -> dict[str, str]:
        """The slots as a dictionary."""
        return dict(self.slots)

    @property
    def group(self) -> str:
        """The kind without its language: the row of the evaluation table."""
        return self.kind.split(".")[0]


def fact(kind: str, answer: str, **slots: str) -> Fact:
    """Build a fact from keyword slots."""
    return Fact(kind, tuple(sorted(slots.items())), answer)


def capitalised(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def number_word(n: int) -> str:
    """Return 0 to 100 as a German word."""
    if n <= 20:
        return NUMBER_WORDS[n]
    if n == 100:
        return "hundert"
    tens, unit = divmod(n, 10)
    if unit == 0:
        return TENS[tens - 2]
    return ("ein" if unit == 1 else NUMBER_WORDS[unit]) + "und" + TENS[tens - 2]


def read_rows(name: str) -> Iterator[list[str]]:
    """Yield the `|`-separated fields of each line of a fact file; lines starting with # are comments."""
    for line in (FACTS_DIR / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split("|")


def load_facts() -> list[Fact]:
    """Return every fact, in a fixed order."""
    return [
        *geography(),
        *arithmetic(),
        *nouns(),
        *opposites(),
        *colours_and_things(),
        *weekdays(),
        *months(),
        *poems(),
        *small_talk(),
    ]


def geography() -> Iterator[Fact]:
    """Capitals in both directions and continents, in both languages; German and Austrian states."""
    for row in read_rows("countries.txt"):
        de, en, city_de, city_en, continent, *cases = row
        nominative, genitive, locative = cases or (de, f"von {de}", f"in {de}")
        city_en = city_en or city_de
        plural = locative.startswith(("in den ", "auf den "))
        names = {"nom": nominative, "gen": genitive}
        yield fact("capital.de", f"Die Hauptstadt {genitive} ist {city_de}.", **names)
        yield fact("capital.en", f"The capital of {en} is {city_en}.", en=en)
        yield fact("country.de", f"{city_de} ist die Hauptstadt {genitive}.", city=city_de)
        yield fact("country.en", f"{city_en} is the capital of {en}.", city=city_en)
        lies = "liegen" if plural else "liegt"
        yield fact("continent.de", f"{capitalised(nominative)} {lies} in {continent}.", **names)
        yield fact("continent.en", f"{capitalised(en)} is in {CONTINENTS_EN[continent]}.", en=en)
    for name, genitive, city in read_rows("states.txt"):
        yield fact("capital.de", f"Die Hauptstadt {genitive} ist {city}.", nom=name, gen=genitive)
        yield fact("country.de", f"{city} ist die Hauptstadt {genitive}.", city=city)


def arithmetic() -> Iterator[Fact]:
    """Sums and differences up to 20, the multiplication table up to 10 and its divisions."""

    def sum_of(kind: str, a: int, sign: str, b: int, result: int) -> Fact:
        words = {"aw": number_word(a), "bw": number_word(b)}
        return fact(kind, f"{a} {sign} {b} = {result}.", a=str(a), b=str(b), **words)

    for a in range(21):
        for b in range(21):
            yield sum_of("add", a, "+", b, a + b)
            if b <= a:
                yield sum_of("sub", a, "-", b, a - b)
    for a in range(1, 11):
        for b in range(1, 11):
            yield sum_of("mul", a, "·", b, a * b)
            yield sum_of("div", a * b, ":", b, a)


def nouns() -> Iterator[Fact]:
    """Article and plural of common German nouns."""
    for article, noun, plural in read_rows("nouns.txt"):
        names = {"noun": noun, "art": article}
        yield fact("plural.de", f"Es heißt: {article} {noun}, die {plural}.", **names)
        yield fact("article.de", f"Es heißt: {article} {noun}.", **names)


def opposites() -> Iterator[Fact]:
    """Opposites, both ways round, in both languages."""
    seen: set[tuple[str, str]] = set()
    for de, de_opposite, en, en_opposite in read_rows("opposites.txt"):
        for kind, template, word, other in (
            ("opposite.de", "Das Gegenteil von {} ist {}.", de, de_opposite),
            ("opposite.de", "Das Gegenteil von {} ist {}.", de_opposite, de),
            ("opposite.en", "The opposite of {} is {}.", en, en_opposite),
            ("opposite.en", "The opposite of {} is {}.", en_opposite, en),
        ):
            if (kind, word) not in seen:
                seen.add((kind, word))
                yield fact(kind, template.format(word, other), word=word)


def colours_and_things() -> Iterator[Fact]:
    """What colour something has, and what a thing is."""
    for np_de, colour_de, np_en, colour_en in read_rows("colours.txt"):
        yield fact("colour.de", f"{capitalised(np_de)} ist {colour_de}.", np=np_de)
        yield fact("colour.en", f"{capitalised(np_en)} is {colour_en}.", np=np_en)
    for np_de, text_de, np_en, text_en in read_rows("things.txt"):
        yield fact("thing.de", text_de, np=np_de)
        yield fact("thing.en", text_en, np=np_en)


def weekdays() -> Iterator[Fact]:
    """The day after and the day before."""
    for i in range(7):
        today, tomorrow = DAYS_DE[i], DAYS_DE[(i + 1) % 7]
        yield fact("day_after.de", f"Nach {today} kommt {tomorrow}.", x=today)
        yield fact("day_before.de", f"Vor {tomorrow} kommt {today}.", x=tomorrow)
        today, tomorrow = DAYS_EN[i], DAYS_EN[(i + 1) % 7]
        yield fact("day_after.en", f"{tomorrow} comes after {today}.", x=today)
        yield fact("day_before.en", f"{today} comes before {tomorrow}.", x=tomorrow)


def months() -> Iterator[Fact]:
    """Neighbours, lengths, seasons and numbers of the months."""
    for i in range(12):
        this, following = MONTHS_DE[i], MONTHS_DE[(i + 1) % 12]
        yield fact("month_after.de", f"Nach dem {this} kommt der {following}.", x=this)
        yield fact("month_before.de", f"Vor dem {following} kommt der {this}.", x=following)
        yield fact("days_in.de", f"Der {this} hat {MONTH_LENGTHS[i]} Tage.", x=this)
        yield fact("season.de", f"Der {this} liegt im {SEASONS[(i + 1) // 3 % 4]}.", x=this)
        ordinal = ORDINALS[i]
        answer = f"Der {ordinal} Monat des Jahres ist der {this}."
        yield fact("nth_month.de", answer, ord=ordinal, ordn=ordinal + "n")
        this, following = MONTHS_EN[i], MONTHS_EN[(i + 1) % 12]
        yield fact("month_after.en", f"{following} comes after {this}.", x=this)
        yield fact("month_before.en", f"{this} comes before {following}.", x=following)
        length = MONTH_LENGTHS[i].replace("oder", "or")
        yield fact("days_in.en", f"{this} has {length} days.", x=this)


def poems() -> Iterator[Fact]:
    """One small poem for each topic; a topic has several names."""
    for header, lines in read_sections("poems.txt"):
        language, *topics = header.split("|")
        for topic in topics:
            yield fact(f"poem.{language}", "\n".join(lines), topic=topic)


def small_talk() -> Iterator[Fact]:
    """Greetings, thanks, who it is: kinds whose phrasings need no slots."""
    for header, lines in read_sections("dialogues.txt"):
        (answer,) = (line[2:] for line in lines if line.startswith("= "))
        yield fact(f"talk.{header}", answer)


def read_sections(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (header, lines) for each "[header]" section of a fact file, without comments and empty lines."""
    header, lines = "", list[str]()
    for line in (FACTS_DIR / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            if header:
                yield header, lines
            header, lines = line[1:-1], []
        elif line and not line.startswith("#"):
            lines.append(line)
    yield header, lines

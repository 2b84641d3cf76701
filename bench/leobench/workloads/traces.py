"""Traces of real services: when requests came, and how long they and their answers were.

Read as they were published: Azure's LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens;
github.com/Azure/AzurePublicDataset) and BurstGPT (CSV: Timestamp in seconds, Request tokens, Response tokens;
github.com/HPMLL/BurstGPT). Neither has texts: prompts of these lengths are made up. And JSON lines of our own:

    {"arrival": 0.25, "messages": [{"role": "user", "content": "Guten Tag!"}], "output_tokens": 64, "group": "chat"}
    {"arrival": 0.75, "prompt": "Es war einmal", "output_tokens": 128}
    {"arrival": 1.5, "input_tokens": 900, "output_tokens": 128}
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from leobench.workloads.planned import Message, Planned, Prompt
from leobench.workloads.synthetic import TEXTS, Form, made_up, sample
from leobench.workloads.words import Words, estimate

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")


class BadTrace(ValueError):
    """A file is no trace. One line: which, where and why."""


class Row(Struct, forbid_unknown_fields=True):
    """One request of a trace. Of `prompt`, `messages` and `input_tokens` there is exactly one."""

    arrival: float
    output_tokens: int
    input_tokens: int | None = None
    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    group: str = "trace"


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a file, by arrival, counted from the first."""

    file: Path
    rows: list[Row]
    seed: int
    form: Form
    words: Words
    empty: int = 0  # requests that were not answered, and are left out
    name: str = field(default="trace")

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "file": self.file.name,
            "requests": len(self.rows),
            "without_answer": self.empty,
            "seed": self.seed,
        }

    def requests(self) -> Iterator[Planned]:
        texts = sample(self.seed, TEXTS)
        begin = self.rows[0].arrival
        for index, row in enumerate(self.rows):
            prompt, tokens = self._prompt(row, texts)
            yield Planned(index, row.group, prompt, tokens, row.output_tokens, arrival=row.arrival - begin)

    def _prompt(self, row: Row, texts: Any) -> tuple[Prompt, int]:
        """The prompt and its tokens."""
        if row.input_tokens is not None:
            return made_up(row.input_tokens, self.form, self.words, texts), row.input_tokens
        if row.messages is not None:
            said = "\n".join(str(message.get("content") or "") for message in row.messages)
            return (row.messages if self.form == "chat" else said), estimate(said) + self.words.around
        if isinstance(row.prompt, list):
            return row.prompt, len(row.prompt)
        text = row.prompt or ""
        return ([{"role": "user", "content": text}] if self.form == "chat" else text), estimate(text)


def read_trace(file: Path) -> tuple[list[Row], int]:
    """A file's requests, by arrival, and how many were left out because they had no answer. Raises BadTrace."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            rows = list(_json_lines(file, lines) if first.lstrip().startswith("{") else _csv(file, lines))
    except (OSError, UnicodeDecodeError) as error:
        raise BadTrace(f"{file}: {error}") from error
    answered = sorted((row for row in rows if row.output_tokens > 0), key=lambda row: row.arrival)
    if not answered:
        raise BadTrace(f"{file} has no requests")
    return answered, len(rows) - len(answered)


def _json_lines(file: Path, lines: Iterable[str]) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(Row)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise BadTrace(f"{file}, line {number}: {error}") from error
        if sum(value is not None for value in (row.prompt, row.messages, row.input_tokens)) != 1:
            raise BadTrace(f"{file}, line {number}: give one of prompt, messages and input_tokens")
        if row.input_tokens is not None and row.input_tokens < 1:
            raise BadTrace(f"{file}, line {number}: input_tokens is at least 1")
        yield row


def _csv(file: Path, lines: Iterable[str]) -> Iterator[Row]:
    table = csv.DictReader(lines)
    names = table.fieldnames or []
    columns = next((layout for layout in (AZURE, BURSTGPT) if set(layout) <= set(names)), None)
    if columns is None:
        raise BadTrace(f"{file}: its first line has neither {', '.join(AZURE)} nor {', '.join(BURSTGPT)}")
    when, asked, answered = columns
    for row in table:
        try:
            arrival = seconds(row[when])
            yield Row(arrival, int(float(row[answered])), input_tokens=max(1, int(float(row[asked]))))
        except (ValueError, TypeError) as error:
            raise BadTrace(f"{file}, line {table.line_num}: {error}") from error


def seconds(text: str) -> float:
    """A number of seconds, or a date and time. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()

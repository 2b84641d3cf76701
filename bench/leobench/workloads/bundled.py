"""The German prompts, documents and words that come with the package. They were written for it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec
from msgspec import Struct


class Chat(Struct, frozen=True):
    """What somebody might ask."""

    topic: str
    prompt: str


class Document(Struct, frozen=True):
    """A text of several pages, and what one might want to know of it."""

    title: str
    text: str
    questions: list[str]


@cache
def chats() -> list[Chat]:
    """At least 200 prompts, from a few words to a few paragraphs."""
    return msgspec.json.decode(b"[" + b",".join(_lines("chats.jsonl")) + b"]", type=list[Chat])


@cache
def documents() -> list[Document]:
    return msgspec.json.decode(b"[" + b",".join(_lines("documents.jsonl")) + b"]", type=list[Document])


@cache
def words() -> list[str]:
    """Common German words, each once."""
    return b" ".join(_lines("words.txt")).decode().split()


def _lines(name: str) -> list[bytes]:
    return (files("leobench.workloads") / "data" / name).read_bytes().splitlines()

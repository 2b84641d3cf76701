"""Clients that give a server more than it takes, and some of what it refuses."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from tests.conftest import PATIENCE

CLIENTS = 14
PAUSE = 0.05  # seconds after a refusal
BEGINNING = "Was ist die Hauptstadt von Frankreich, und wie heißen die Nachbarländer? " * 6  # blocks that prompts share


def bodies(number: int) -> Iterator[dict[str, Any]]:
    """What client `number` asks for: mostly long answers, streamed and whole, some short, some that are refused."""
    long = {"model": "leoserve-demo", "max_tokens": 400, "ignore_eos": True}
    for turn in itertools.count():
        prompt = f"{BEGINNING} Anfrage {number}, {turn}"
        yield long | {"prompt": prompt, "stream": True}
        yield long | {"prompt": prompt, "temperature": 9}
        yield long | {"prompt": prompt}
        yield {"model": "leoserve-demo", "prompt": prompt, "max_tokens": 8}


def ask(url: str, number: int, stop: threading.Event) -> None:
    """Send one request after the other. That some fail is the purpose."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for body in bodies(number):
            if stop.is_set():
                return
            try:
                answer = client.post("/v1/completions", json=body)
            except httpx.TransportError:
                continue
            if not answer.is_success:
                stop.wait(PAUSE)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Load on the server at `url` within the context."""
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        running = [threads.submit(ask, url, number, stop) for number in range(CLIENTS)]
        try:
            yield
        finally:
            stop.set()
    for one in running:
        one.result()

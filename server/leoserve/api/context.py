"""What every request handler works with: made once by the command line, kept on the app."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, cast

from fastapi import Request as HttpRequest

import leoserve
from leoserve.api.admission import Admission
from leoserve.api.threads import TextThreads
from leoserve.board import Board
from leoserve.engine.client import State
from leoserve.engine.request import EngineStats, Ready, Request, TokenOutput
from leoserve.metrics import Metrics
from leoserve.settings import Settings
from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that the API uses."""

    @property
    def state(self) -> State: ...
    @property
    def ready(self) -> Ready | None: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def healthy(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...


@dataclass
class ServerContext:
    """`model_ids`: the names the model answers to, first the one it calls itself. `created`: Unix time.

    `board`: what is counted with other processes of this server; `metrics` has been given it, too. `part`: which of
    them this is, so that each draws seeds of its own.
    """

    settings: Settings
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    model_ids: list[str]
    created: int
    metrics: Metrics
    board: Board = field(default_factory=Board)
    part: str = ""
    threads: TextThreads = field(default_factory=TextThreads)
    admission: Admission = field(init=False)
    seeds: random.Random = field(init=False)
    longest_token: int = field(init=False)  # bytes

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings, self.engine, self.board)
        self.seeds = random.Random(f"{self.settings.seed} {self.part}" if self.part else self.settings.seed)
        self.longest_token = max(map(len, self.tokenizer.vocabulary.pieces))
        self.metrics.watch(self.model_ids[0], self.engine, self.settings.max_waiting_requests)

    def fingerprint(self) -> str:
        """`system_fingerprint`: equal for equal builds serving the same model in the same way."""
        ready = self.engine.ready
        how = (ready.dtype, ready.device, ready.attention) if ready else ()
        return fingerprint(leoserve.__version__, self.model_ids[0], how)


@cache
def fingerprint(version: str, model: str, how: tuple[str, ...]) -> str:
    return "fp_" + hashlib.sha256(repr((version, model, how)).encode()).hexdigest()[:12]


def context_of(request: HttpRequest) -> ServerContext:
    return cast(ServerContext, request.app.state.context)

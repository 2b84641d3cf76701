"""What a run leaves behind: one JSON file that everything else (summary, report, comparison) is made from.

Times of requests and samples are in seconds since the run began, by a clock that never goes back. A simulated run has
the same records in simulated seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

RUN = "leobench-run/1"
SWEEP = "leobench-sweep/1"


class RequestRecord(Struct, omit_defaults=True):
    """One request, from its intended arrival to its last byte.

    Latencies count from `intended`: in an open loop that is when the load said it should be sent, however late the
    client or the connection was (no coordinated omission); in a closed loop it is when the client was free to send it.
    """

    index: int  # in order of intended arrival
    intended: float
    sent: float  # the first byte was handed to the socket
    ended: float  # the last byte came, or the error
    first: float | None = None  # the first token came; without streaming, the answer
    last: float | None = None  # the last token came
    chunk_times: list[float] = []  # of every event that brought tokens; empty without streaming
    prompt_tokens: int | None = None  # by the server's usage, never counted from chunks
    cached_tokens: int | None = None  # of these, from the prefix cache, where the server says so
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None  # its kind: timeout, connect, disconnect, http 429, stream, incomplete, …
    message: str | None = None  # what came with the error, cut short
    group: str = ""  # the workload's class: chat, document, …
    session: int | None = None  # of a conversation, with its turn from 0 on
    turn: int | None = None
    url: int = 0  # which of the run's URLs
    warmup: bool = False  # sent before measuring began


class ServerSample(Struct, omit_defaults=True):
    """What a server's /metrics said at a moment. A value that it does not have is None."""

    time: float
    running: float | None = None
    waiting: float | None = None
    cache_usage: float | None = None  # of the KV cache, 0 to 1
    prompt_tokens: float | None = None  # counters since the server's start
    generation_tokens: float | None = None
    cached_tokens: float | None = None
    preemptions: float | None = None
    url: int = 0


class ClientHealth(Struct, omit_defaults=True):
    """Whether the client could keep up: a late client measures itself."""

    loop_lag_p99: float = 0.0  # seconds by which the event loop was late
    loop_lag_max: float = 0.0
    cpu: float = 0.0  # of one core, mean over the measured time
    late_p99: float = 0.0  # seconds from an intended arrival to its being sent, open loop
    warnings: list[str] = []


class Slo(Struct, omit_defaults=True):
    """Bounds that a request must keep to count as good, in seconds. None: no bound."""

    ttft: float | None = None
    itl: float | None = None  # the 99th percentile of the request's own gaps
    tpot: float | None = None
    e2e: float | None = None


class Run(Struct):
    """A run of the load tester, or of the simulator."""

    name: str
    kind: Literal["measured", "simulated"]
    started: str  # ISO 8601, UTC
    measured_from: float  # when the warm-up was over
    measured_until: float
    workload: dict[str, Any]  # name, seed and every parameter
    load: dict[str, Any]  # pattern (closed, poisson, gamma, trace, ramp) and every parameter
    target: dict[str, Any]  # urls, model, endpoint, stream
    settings: dict[str, Any]  # the command's options, keys of the API left out
    versions: dict[str, str]  # leobench, python, and what the server says of itself
    requests: list[RequestRecord]
    samples: list[ServerSample] = []
    client: ClientHealth = msgspec.field(default_factory=ClientHealth)
    slo: Slo | None = None
    summary: dict[str, Any] = {}  # as summary.py computed it when the run ended; computed anew when read
    schema: str = RUN


class Sweep(Struct):
    """Runs that differ in one quantity."""

    name: str
    axis: Literal["concurrency", "rate"]
    values: list[float]  # of each run
    runs: list[Run]
    search: dict[str, Any] = {}  # of a search for the highest rate within an SLO: bounds, steps, outcome
    schema: str = SWEEP


class Unreadable(ValueError):
    """A file is not a result. One line: which and why."""


def read(file: Path) -> Run | Sweep:
    """A result from its file. Raises Unreadable."""
    try:
        content = file.read_bytes()
        head = msgspec.json.decode(content, type=dict[str, Any])
        schema = head.get("schema")
        if schema == RUN:
            return msgspec.json.decode(content, type=Run)
        if schema == SWEEP:
            return msgspec.json.decode(content, type=Sweep)
    except (OSError, msgspec.DecodeError) as error:
        raise Unreadable(f"{file}: {error}") from error
    raise Unreadable(f"{file}: its schema is {schema!r}, not {RUN!r} or {SWEEP!r}")


def write(result: Run | Sweep, file: Path) -> None:
    """The file is replaced at once, so that nobody reads half of it."""
    draft = file.with_name(file.name + ".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    draft.replace(file)

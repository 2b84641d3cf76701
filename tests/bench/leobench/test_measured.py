"""What is measured is what happened: against a server that writes down when it sent what, and against vLLM's client."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from leobench.client import Client, Target
from leobench.drive import Drive
from leobench.load import Load, Span
from leobench.records import Run, read
from leobench.summary import ttft
from leobench.workloads import ESTIMATED, Words
from leobench.workloads.lengths import counts
from leobench.workloads.synthetic import Synthetic
from tests.conftest import PATIENCE

from .conftest import TRIES, Process, Told, kept_up

Start = Callable[..., Process]
Command = Callable[..., Told]
NEAR = 0.02
TOKENS = 8


def schedule() -> dict[str, list[float]]:
    """First tokens after 0.6 to 2 s and gaps of 50 to 150 ms, as a server might have them."""
    draw = Random(5)
    return {
        "first": [0.6 + 1.4 * draw.random() ** 2 for _ in range(97)],
        "gaps": [0.05 + 0.1 * draw.random() for _ in range(89)],
    }


def measure(leobench: Command, tmp_path: Path, url: str, *arguments: str) -> Run:
    told = leobench("run", "--url", url, "--warmup", "0", "--out", "run.json", *arguments)
    assert told.code == 0, told.stderr
    run = read(tmp_path / "run.json")
    assert isinstance(run, Run)
    return run


def undisturbed(
    start_double: Start, plan: dict[str, Any], leobench: Command, tmp_path: Path, *arguments: str
) -> tuple[Run, Process]:
    """A run in which the client kept up, by its own account, and the server that it was against."""
    for _ in range(TRIES):
        double = start_double(**plan)
        run = measure(leobench, tmp_path, double.url, *arguments)
        if kept_up(run):
            break
    return run, double


def near(figures: dict[str, Any], truth: list[float]) -> None:
    """Percentiles and mean are those of the truth, to 2 %."""
    assert figures["count"] == len(truth)
    for q in (50, 75, 90, 95, 99):
        assert figures[f"p{q}"] == pytest.approx(float(np.percentile(truth, q)), rel=NEAR), f"p{q}"
    assert figures["mean"] == pytest.approx(float(np.mean(truth)), rel=NEAR)


@pytest.mark.parametrize("load", [("--concurrency", "32"), ("--rate", "30")])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_percentiles_are_those_of_the_servers_own_log(
    start_double: Start, leobench: Command, tmp_path: Path, load: tuple[str, str], endpoint: str
) -> None:
    words = ("--requests", "128", "--output-tokens", str(TOKENS), "--endpoint", endpoint)
    run, double = undisturbed(start_double, schedule(), leobench, tmp_path, *load, *words)
    summary, log = run.summary, double.log()
    assert len(log) == 128
    near(summary["ttft"], [sent["events"][0] - sent["arrived"] for sent in log])
    near(summary["itl"], [later - earlier for sent in log for earlier, later in pairwise(sent["events"])])
    near(summary["tpot"], [(sent["events"][-1] - sent["events"][0]) / (TOKENS - 1) for sent in log])
    near(summary["e2e"], [sent["events"][-1] - sent["arrived"] for sent in log])
    begin, end = min(sent["arrived"] for sent in log), max(sent["events"][-1] for sent in log)
    assert summary["throughput"]["output_tokens_s"] == pytest.approx(128 * TOKENS / (end - begin), rel=NEAR)


STALL_AT, STALL, RATE = 1.0, 1.0, 40


def test_a_stalled_server_makes_every_request_late_that_was_due_meanwhile(
    start_double: Start, leobench: Command, tmp_path: Path
) -> None:
    """In an open loop these are all that were due in the stall, though each was sent on time; a closed loop's single
    user would have met it once."""
    plan = {"first": [0.01], "stall_at": STALL_AT, "stall": STALL}
    words = ("--output-tokens", "1", "--requests", "120")
    opened, _ = undisturbed(start_double, plan, leobench, tmp_path, "--rate", str(RATE), "--cv", "0", *words)
    waits = [wait for record in opened.requests if (wait := ttft(record)) is not None]
    assert sum(wait > 0.1 for wait in waits) == pytest.approx(RATE * (STALL - 0.1), abs=2)
    assert opened.summary["ttft"]["p75"] == pytest.approx(float(np.percentile(expected(), 75)), abs=0.05)
    assert opened.summary["ttft"]["max"] == pytest.approx(STALL, abs=0.05)
    closed, _ = undisturbed(start_double, plan, leobench, tmp_path, "--concurrency", "1", *words)
    assert sum(wait > 0.1 for record in closed.requests if (wait := ttft(record)) is not None) == 1


def expected() -> list[float]:
    """What 120 evenly spaced requests wait, when answers due in the stall come at its end."""
    due = [at / RATE for at in range(120)]
    return [0.01 + (max(0.0, STALL_AT + STALL - at) if STALL_AT <= at < STALL_AT + STALL else 0.0) for at in due]


async def test_a_late_client_measures_its_own_lateness(start_double: Start) -> None:
    """Half a second in which the client does nothing at all is in the latencies of what was due meanwhile."""
    double = start_double(first=[0.01])
    began = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - began

    client = Client(Target([double.url], "double", "completions", True, {}, 30.0), {}, now)
    drive = Drive(client, Load("constant", rate=Span(50, 50), cv=0.0, requests=50), now)
    asyncio.get_running_loop().call_later(0.3, time.sleep, 0.5)
    workload = Synthetic(counts("4"), counts("1"), 1, "completions", Words(ESTIMATED.words, ESTIMATED.tokens))
    await drive.run(workload)
    await client.close()
    assert [record.error for record in drive.records] == [None] * 50
    records = sorted(drive.records, key=lambda record: record.intended)
    spaces = [later.intended - earlier.intended for earlier, later in pairwise(records)]
    assert spaces == pytest.approx([0.02] * 49), "what was intended stays as it was"
    late = [record for record in records if record.sent - record.intended > 0.1]
    assert len(late) >= 17, "of half a second at 50 a second, those due in its first 0.4 s; more on a busy machine"
    assert all((ttft(record) or 0) > record.sent - record.intended for record in late)
    assert max(drive.lateness) > 0.4


@pytest.mark.skipif(
    "LEOBENCH_VLLM" not in os.environ, reason="LEOBENCH_VLLM names no folder of a virtual environment with vLLM"
)
@pytest.mark.parametrize(("concurrency", "requests"), [(4, 40), (16, 96)])
def test_throughput_is_what_vllms_own_client_measures(
    start_double: Start,
    leobench: Command,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    concurrency: int,
    requests: int,
) -> None:
    """The server is slow enough for both to keep up with it on a machine that does other work too."""
    from leoserve.demo import model_path

    plan = {"first": [0.5], "gaps": [0.1]}
    words = ("--endpoint", "completions", "--workload", "random", "--input-tokens", "32", "--output-tokens", "24")
    load = ("--concurrency", str(concurrency), "--requests", str(requests))
    ours = measure(leobench, tmp_path, start_double(**plan).url, *words, *load).summary
    program = Path(os.environ["LEOBENCH_VLLM"]) / "bin" / "vllm"
    command = [
        str(program), "bench", "serve", "--backend", "openai", "--base-url", start_double(**plan).url,
        "--endpoint", "/v1/completions", "--model", "double", "--tokenizer", str(model_path()),
        "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "24", "--ignore-eos",
        "--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--seed", "1",
        "--save-result", "--result-dir", str(tmp_path), "--result-filename", "vllm.json",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "vllm.json").read_text())
    assert theirs["completed"] == ours["requests"]["ok"] == requests
    for figure, told in (("output_tokens_s", "output_throughput"), ("requests_s", "request_throughput")):
        record_property(figure, [ours["throughput"][figure], theirs[told]])
    assert ours["throughput"]["output_tokens_s"] == pytest.approx(theirs["output_throughput"], rel=0.05)
    assert ours["throughput"]["requests_s"] == pytest.approx(theirs["request_throughput"], rel=0.05)

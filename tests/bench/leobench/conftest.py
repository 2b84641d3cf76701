"""The load tester as a user starts it, and servers for it, each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leobench.records import Run
from tests.conftest import PATIENCE, ROOT, clean_environment

HERE = Path(__file__).parent
# Seconds by which the event loop of a client that keeps up is late, at the 99th percentile and at most; and how often a
# run is tried until its client does, beside what else the machine has to do.
LATE, LATEST, TRIES = 0.008, 0.05, 8


def kept_up(run: Run) -> bool:
    """Whether the client of a run kept up, by its own account."""
    return run.client.loop_lag_p99 < LATE and run.client.loop_lag_max < LATEST


@dataclass
class Told:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Process:
    """A server in its process."""

    process: subprocess.Popen[str]
    url: str

    def log(self) -> list[dict[str, Any]]:
        """What double.py did so far."""
        with urllib.request.urlopen(f"{self.url}/log", timeout=PATIENCE) as response:
            told: list[dict[str, Any]] = json.load(response)
        return told


def start(script: str, *arguments: str) -> Process:
    command = [sys.executable, str(HERE / script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, f"{script} ended before it said its port"
    return Process(process, f"http://127.0.0.1:{port}")


@pytest.fixture
def start_double() -> Iterator[Callable[..., Process]]:
    """Starts double.py with a plan given as keywords."""
    running: list[Process] = []

    def begin(**plan: Any) -> Process:
        running.append(start("double.py", json.dumps(plan)))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def start_noop() -> Iterator[Callable[..., Process]]:
    """Starts noop.py."""
    running: list[Process] = []

    def begin(tokens: int, at_once: int, pause: float = 0.0) -> Process:
        running.append(start("noop.py", str(tokens), str(at_once), str(pause)))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.wait()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "leobench", *arguments]


@pytest.fixture
def leobench(tmp_path: Path) -> Callable[..., Told]:
    """Runs `leobench …` in a folder of its own, to its end."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> Told:
        done = subprocess.run(
            command(*arguments),
            env=clean_environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=tmp_path,
        )
        return Told(done.returncode, done.stdout, done.stderr)

    return run

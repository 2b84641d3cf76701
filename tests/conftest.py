"""What tests of every room share: a real server process, started as a user starts it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Seconds for one answer, one program, one start: far above what any takes, on a machine that does much else too. It
# ends a hang and guards no speed.
PATIENCE = 300.0

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores
if not torch.cuda.is_available():
    # Without a GPU its kernels are interpreted. Triton looks when a kernel is defined, so before any test is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The same examples at every run, and no bound on seconds: `--hypothesis-profile=default` looks for others.
hypothesis.settings.load_profile("ci")


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without LEOSERVE_ variables, with the source roots importable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LEOSERVE_")}
    roots = os.pathsep.join(str(ROOT / root) for root in ("server", "kernels", "bench"))
    return inherited | {"PYTHONPATH": roots, "HF_HUB_OFFLINE": "1"} | variables


@dataclass
class Server:
    """A `leoserve serve` process. Its stderr is read as it comes."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()

    @property
    def stderr(self) -> str:
        with self.news:
            return "".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match of `pattern` in what the server has said or will say. Fails when it ends without."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines), re.MULTILINE)

        with self.news:
            self.news.wait_for(lambda: found() or self.ended, timeout)
            match = found()
        if match is None:
            pytest.fail(f"the server never said {pattern!r}, but:\n{self.stderr}")
        return match

    @property
    def url(self) -> str:
        """`http://address:port`, known before the server is ready."""
        return self.wait_for(r'address\W+(http://[^\s"]+)')[1]

    @property
    def engine(self) -> psutil.Process:
        """The process of its engine."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "leoserve.engine.process" in child.cmdline())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile the engine stands still, so that whatever is unanswered stays so, however fast the machine is."""
        engine = self.engine
        engine.suspend()
        try:
            yield
        finally:
            engine.resume()

    def openai(self, **options: Any) -> Any:
        """An OpenAI SDK client of this server."""
        from openai import OpenAI

        defaults: dict[str, Any] = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        return OpenAI(**(defaults | options))

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


class Serve(Protocol):
    """Starts a server of `model` (None: the demo) on a free port; ready on return, unless `wait` is false."""

    def __call__(
        self, model: Path | str | None, *arguments: str, wait: bool = True, env: dict[str, str] | None = None
    ) -> Server: ...


def start_server(model: Path | str | None, *arguments: str, env: dict[str, str] | None = None) -> Server:
    command = [sys.executable, "-m", "leoserve", "serve", *([] if model is None else [str(model)])]
    if "--port" not in arguments:
        command += ["--port", "0"]
    if "--threads" not in arguments:
        command += ["--threads", "1"]
    process = subprocess.Popen(
        [*command, *arguments], env=clean_environment(**(env or {})), stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    return Server(process)


RUNNING = pytest.StashKey[list[Server]]()


def keeper(config: pytest.Config) -> Iterator[Serve]:
    """Starts servers for one scope and ends them with it."""
    running = config.stash.setdefault(RUNNING, [])
    own: list[Server] = []

    def start(
        model: Path | str | None, *arguments: str, wait: bool = True, env: dict[str, str] | None = None
    ) -> Server:
        server = start_server(model, *arguments, env=env)
        own.append(server)
        running.append(server)
        if wait:
            server.wait_for(r"leoserve is ready|\"message\": \"ready\"")
        return server

    yield start
    for server in own:
        running.remove(server)
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            server.process.kill()
            raise


@pytest.fixture(scope="session")
def serve_once(pytestconfig: pytest.Config) -> Iterator[Serve]:
    """Start servers that live as long as the test session."""
    yield from keeper(pytestconfig)


@pytest.fixture
def serve(pytestconfig: pytest.Config) -> Iterator[Serve]:
    """Start servers that live as long as the test."""
    yield from keeper(pytestconfig)


@pytest.fixture(scope="session")
def demo_server(serve_once: Serve) -> Server:
    """The bundled demo model, shared by all tests that only ask it things."""
    return serve_once(None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a generator of its own is the same at every run."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report shows what the running servers said."""
    report = yield
    if report.failed:
        for server in item.config.stash.get(RUNNING, []):
            report.sections.append((f"stderr of the server with process id {server.process.pid}", server.stderr))
    return report

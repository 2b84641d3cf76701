"""Runs the stages one after the other, each in its own process and within its time, and keeps what they bring.

A stage gives every measurement as a line of JSON as soon as it has it, so that one that is cut short has lost only the
measurement it was at. Time that a stage leaves over goes to those after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpustages.results import Results
from gpustages.stages import BY_NAME, STAGES, TOTAL_SECONDS, Measurement, Stage

GRACE = 3.0  # seconds between a stage's own end of time and its being killed
LAST_WORDS = 1500  # characters of a failed stage's output in the results


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage's process ended."""

    status: str  # done, failed or cut
    error: str = ""


# Runs a stage for at most so many seconds, hands on its measurements as they come, and says how it ended.
Launch = Callable[[Stage, float, Callable[[Measurement], None]], Outcome]


def run(arguments: Sequence[str]) -> int:
    """The command. 0: all stages came to their end and all checks hold."""
    options = _options(arguments)
    if options.stage:
        from gpustages.child import run_stage

        return run_stage(BY_NAME[options.stage], options)
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out, options.tiny)
    scratch = Path(tempfile.mkdtemp(prefix="leoserve-gpu-"))
    try:
        with (options.out / "results.log").open("w", encoding="utf-8") as log:
            launch = Processes(options.tiny, results, scratch, log)
            run_stages(stages, results, launch=launch, clock=time.monotonic, seconds=options.seconds)
    finally:
        for folder in (scratch, in_memory(scratch)):
            shutil.rmtree(folder, ignore_errors=True)
    print(results.table(), flush=True)
    return 0 if results.succeeded else 1


def in_memory(scratch: Path) -> Path:
    """The folder for files that are better kept in memory: whoever made `scratch` removes it, too."""
    return Path("/dev/shm") / scratch.name


def run_stages(
    stages: Iterable[Stage], results: Results, *, launch: Launch, clock: Callable[[], float], seconds: float
) -> None:
    """All stages within `seconds`, of which each has its share and what those before it left over."""
    stages = list(stages)
    begin = clock()
    share = seconds / sum(stage.seconds for stage in stages)
    end = begin
    for stage in stages:
        end += stage.seconds * share
        result = results.begin(stage)
        started = clock()

        def take(measurement: Measurement, into: list[Measurement] = result.measurements) -> None:
            into.append(measurement)
            results.write()

        try:
            outcome = launch(stage, max(1.0, end - started), take)
        except Exception as error:  # whatever became of this stage, the next one is run
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        result.status, result.error, result.seconds = outcome.status, outcome.error, clock() - started
        results.write()


@dataclass(slots=True)
class Processes:
    """Launches stages as processes of this program."""

    tiny: bool
    results: Results
    scratch: Path
    log: IO[str]

    def __call__(self, stage: Stage, seconds: float, take: Callable[[Measurement], None]) -> Outcome:
        words = self.scratch / f"{stage.name}.txt"
        with words.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                self._command(stage, seconds),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env=os.environ | self._environment(),
            )
            cut = _read(process, seconds + GRACE, take)
        said = words.read_text(encoding="utf-8", errors="replace")
        self.log.write(f"==== {stage.name}\n{said}\n")
        self.log.flush()
        if cut:
            return Outcome("cut", f"stopped after {seconds:.0f} s\n{said[-LAST_WORDS:]}")
        if process.returncode:
            return Outcome("failed", f"exit code {process.returncode}\n{said[-LAST_WORDS:]}")
        return Outcome("done")

    def _command(self, stage: Stage, seconds: float) -> list[str]:
        command = [sys.executable, str(Path(__file__).parents[1] / "gpu.py"), "--stage", stage.name]
        command += ["--seconds", f"{seconds:.1f}", "--scratch", str(self.scratch)]
        command += ["--ceilings", json.dumps(self.results.ceilings)]
        return [*command, "--tiny"] if self.tiny else command

    def _environment(self) -> dict[str, str]:
        """Nothing asks a network; Triton has to be told before it is imported whether it compiles or interprets."""
        offline = {"HF_HUB_OFFLINE": "1"}
        return offline | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if self.tiny else {})


def _read(process: subprocess.Popen[str], seconds: float, take: Callable[[Measurement], None]) -> bool:
    """Hand on the process's measurements until it ends. True when it had to be killed."""
    import threading

    cut = threading.Event()

    def kill() -> None:
        cut.set()
        _kill(process)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        for line in process.stdout or ():
            if line.startswith("{"):
                take(json.loads(line))
        process.wait()
    finally:
        timer.cancel()
        _kill(process)  # and whatever it started
    return cut.is_set()


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description="Measure leoserve's GPU path on this machine.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=BY_NAME, metavar="STAGE", help=f"some of: {', '.join(BY_NAME)}")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="run on a CPU with sizes that only show that it runs")
    parser.add_argument("--stage", choices=BY_NAME, help=argparse.SUPPRESS)  # the rest is for stages' processes
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", type=json.loads, default={}, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)

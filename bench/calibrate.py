"""How long the engine's steps take on this machine, for `leobench simulate --calibration FILE`.

    python bench/calibrate.py MODEL --out calibration.json

Starts the server's engine in this process, with the loop, scheduler and runner that serve, and times steps of a handful
of batch sizes and context lengths. To their medians a table by tokens is fitted, with a price for each sampled token,
each key that is attended to, and each pair of a prompt's tokens. Then a server is started, and a few requests over HTTP
say what a request waits beside its steps, and what a token costs the API process. It needs torch and a model, and so it
is no part of leobench, which has neither; what comes out is a small file, which `leobench simulate` reads anywhere.
`--threads` is the server's option of that name: calibrate with what the server has.

A minute for a model of a hundred million parameters. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import psutil

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the server's engine has it; torch looks when it is imported
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
for folder in ("server", "kernels", "bench"):
    sys.path.insert(0, str(ROOT / folder))

from taker import taker  # noqa: E402

from leobench.records import Run, read  # noqa: E402
from leobench.simulate.calibrated import Calibrated, Calibration  # noqa: E402
from leobench.simulate.work import Work, prefill_pairs, work_of  # noqa: E402
from leoserve.engine.config import EngineConfig  # noqa: E402
from leoserve.engine.loop import EngineLoop, LaunchedStep, StepRunner  # noqa: E402
from leoserve.engine.process import Line  # noqa: E402
from leoserve.engine.request import Ready, Refused, Request, SamplingParams, StepOutputs  # noqa: E402
from leoserve.engine.start import start_engine  # noqa: E402
from leoserve.model.config import ModelConfig  # noqa: E402
from leoserve.model.step import Step  # noqa: E402

SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("server", "kernels", "bench"))
READY = re.compile(r"base URL\s+(http://\S+)/v1")
ALONE = ("--input-tokens", "uniform:16:256", "--output-tokens", "8", "--concurrency", "1", "--requests", "50")
TOGETHER = ("--input-tokens", "64", "--output-tokens", "128", "--concurrency", "8", "--requests", "24")

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (16, 256)  # tokens of the prompts of sequences that decode
ANSWER = 13  # tokens that each sequence of a batch generates
PROMPTS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
LONG = 2048  # a prompt of several steps: what tokens after others cost
REPEATS = 3
PRICES = ("prompt", "sampled", "key", "pair", "far")


@dataclass
class Recorder:
    """A runner around the engine's, which notes what each step is and when it was launched."""

    runner: StepRunner
    window: int | None
    work: list[Work] = field(default_factory=list)

    def launch(self, step: Step) -> LaunchedStep:
        self.work.append(work_of(step, self.window))
        return self.runner.launch(step)


class Engine:
    """The server's engine, driven by hand."""

    def __init__(self, config: EngineConfig, line: Line) -> None:
        """`line`: to where its results are sent, which is a part of each step."""
        self._line = line
        self.window = ModelConfig.from_folder(Path(config.model)).sliding_window
        loop, ready = start_engine(config, self._take)
        self.loop: EngineLoop = loop
        self.ready: Ready = ready
        self.recorder = Recorder(loop.runner, self.window)
        loop.runner = self.recorder
        self._draw = Random(1)
        self._serial = 0

    def steps(self, prompts: list[list[int]], answer: int) -> list[tuple[Work, float]]:
        """Each step of answering these prompts at once, and its seconds from plan to output."""
        for prompt in prompts:
            self._serial += 1
            params = SamplingParams(max_tokens=answer, temperature=1.0, seed=self._serial)
            request = Request(
                request_id=str(self._serial), prompt=prompt, params=params, arrival=float(self._serial)
            )  # fmt: skip
            refused = self.loop.scheduler.admission.admit(request)
            if refused is not None:
                raise SystemExit(f"calibrate: {refused.message}")
            self.loop.submit(request)
        self.loop.receive()
        found = []
        while True:
            self.recorder.work.clear()
            begin = time.perf_counter()
            if not self.loop.step():
                return found
            found.append((self.recorder.work[-1], time.perf_counter() - begin))

    def prompt(self, length: int) -> list[int]:
        """Never the same twice: nothing of it is in the cache."""
        return [self._draw.randrange(self.ready.vocab_size) for _ in range(length)]

    def _take(self, message: StepOutputs | Refused) -> None:
        if isinstance(message, Refused):
            raise SystemExit(f"calibrate: {message.message}")
        for output in message.outputs:
            if output.error is not None:
                raise SystemExit(f"calibrate: {output.error}")
        self._line.send(message)


def measure(engine: Engine, batches: tuple[int, ...], longest: int) -> list[tuple[Work, float]]:
    """Steps of the handful of kinds, each with its median seconds."""
    found: defaultdict[tuple[object, ...], list[tuple[Work, float]]] = defaultdict(list)
    # Known after the first time, so that they need not be computed again; each with keys of its own, which are read.
    known = {context: [engine.prompt(context) for _ in range(max(batches))] for context in CONTEXTS}
    for repeat in range(REPEATS):
        for context in CONTEXTS:
            for batch in batches:
                for work, seconds in engine.steps(known[context][:batch], ANSWER):
                    if work.decode_rows == batch and not work.prefills:
                        found["decode", context, batch].append((work, seconds))
        for length in PROMPTS:
            for work, seconds in engine.steps([engine.prompt(length)], 1):
                found["prompt", work.prefills].append((work, seconds))
        if repeat:
            for work, seconds in engine.steps([engine.prompt(min(LONG, longest - 1))], 1):
                found["long", work.prefills].append((work, seconds))
    return [_median(each) for key, each in found.items() if key[0] == "decode" or key[1]]


def _median(steps: list[tuple[Work, float]]) -> tuple[Work, float]:
    work = steps[len(steps) // 2][0]
    keys = round(statistics.median(each.decode_keys for each, _ in steps))
    seconds = statistics.median(seconds for _, seconds in steps)
    return Work(work.decode_rows, keys, work.prefills, work.sampled), seconds


def fit(steps: list[tuple[Work, float]], window: int | None) -> dict[str, Any]:
    """The table and the prices of a Calibration: least squares of the relative errors.

    `near` is the count of keys among those that were met with which the errors are the smallest.
    """
    found = [_fit(steps, window, near) for near in sorted({work.decode_keys for work, _ in steps})]
    return min(found, key=lambda each: each[0])[1]


def _fit(steps: list[tuple[Work, float]], window: int | None, near: int) -> tuple[float, dict[str, Any]]:
    """Also the sum of the squares. No price is below zero: where one would be, the others are fitted without it."""
    tokens = sorted({work.tokens for work, _ in steps})
    matrix = np.zeros((len(steps), len(tokens) + len(PRICES)))
    for line, (work, _) in enumerate(steps):
        pairs = sum(prefill_pairs(count, start, window) for count, start in work.prefills)
        matrix[line, tokens.index(work.tokens)] = 1
        beyond = max(0, work.decode_keys - near)
        matrix[line, len(tokens) :] = bool(work.prefills), work.sampled, work.decode_keys, pairs, beyond
    relative = matrix / np.array([[seconds] for _, seconds in steps])
    scale = relative.max(axis=0)
    kept = [column for column in range(matrix.shape[1]) if scale[column] > 0]
    while True:
        part = (relative / np.where(scale > 0, scale, 1))[:, kept]
        solution = np.linalg.lstsq(part, np.ones(len(steps)), rcond=None)[0]
        if (solution >= 0).all():
            break
        kept.remove(kept[int(np.argmin(solution))])
    found = np.zeros(matrix.shape[1])
    found[kept] = solution / scale[kept]
    prices = dict(zip(PRICES, found[len(tokens) :].tolist(), strict=True))
    off = float(np.square(part @ solution - 1).sum())
    return off, {"tokens": tokens, "seconds": found[: len(tokens)].tolist(), "near": near, **prices}


@contextmanager
def server(config: EngineConfig) -> Iterator[tuple[int, str]]:
    """A server with these options: its process id and its address. Raises SystemExit when it does not start."""
    command = [sys.executable, "-m", "leoserve", "serve", config.model, "--port", "0"]
    command += ["--max-num-seqs", str(config.max_num_seqs)]
    command += ["--threads", str(config.threads)] if config.threads else []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEOSERVE_")}
    environment = clean | {"PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said = []
    try:
        for line in process.stderr or ():
            said.append(line)
            if found := READY.search(line):
                Thread(target=(process.stderr or sys.stdin).read, daemon=True).start()
                yield process.pid, found[1]
                return
        raise SystemExit("calibrate: the server did not start:\n" + "".join(said[-10:]))
    finally:
        process.terminate()
        process.wait()


def load(url: str, *options: str) -> Run:
    """What `leobench run` measures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        command = [sys.executable, "-m", "leobench", "run", "--url", url, "--workload", "random"]
        command += ["--field", "ignore_eos=true", "--out", str(file), *options]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": SOURCES})
        found = read(file)
    if not isinstance(found, Run):
        raise TypeError(f"{file.name} is not the result of one run")
    return found


def over_http(url: str, process: int, steps: Calibrated) -> tuple[float, float]:
    """Seconds that a request waits beside its prompt's steps, and seconds of the API process for each token."""
    waits = []
    for record in load(url, *ALONE).requests:
        if record.first is not None and record.prompt_tokens and not record.warmup:
            prompt = Work(0, 0, ((record.prompt_tokens, 0),), 1)
            waits.append(record.first - record.intended - steps.cost(prompt).device)
    api = psutil.Process(process)
    before = sum(api.cpu_times()[:2])
    run = load(url, *TOGETHER)
    spent = sum(api.cpu_times()[:2]) - before
    return max(0.0, statistics.median(waits)), spent / sum(record.output_tokens or 0 for record in run.requests)


def calibrate(config: EngineConfig) -> Calibration:
    """The engine's steps, and the way to it."""
    with taker() as line:
        made = in_process(Engine(config, line), config)
    with server(config) as (process, url):
        request, token = over_http(url, process, Calibrated(made))
    return msgspec.structs.replace(made, request=request, token=token)


def in_process(engine: Engine, config: EngineConfig) -> Calibration:
    """What its steps take."""
    limits, pool = engine.loop.scheduler.limits, engine.loop.scheduler.pool
    batches = tuple(batch for batch in BATCHES if batch <= limits.max_sequences)
    steps = measure(engine, batches, limits.max_model_len)
    made = Calibration(
        model=Path(config.model).resolve().name,
        machine={
            "processor": platform.processor() or platform.machine(),
            "device": engine.ready.device,
            "attention": engine.ready.attention,
            "dtype": engine.ready.dtype,
            "threads": str(torch.get_num_threads()),
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
        engine={
            "max_num_seqs": limits.max_sequences,
            "max_tokens_per_step": limits.max_tokens_per_step,
            "max_model_len": limits.max_model_len,
            "block_size": limits.block_size,
            "num_blocks": pool.num_blocks,
            "deterministic": limits.deterministic,
            "prefill_stretch": limits.prefill_stretch,
        },
        window=engine.window,
        **fit(steps, engine.window),
    )
    model = Calibrated(made)
    fitted = [
        {
            "rows": work.decode_rows,
            "keys": work.decode_keys,
            "prompt": sum(count for count, _ in work.prefills),
            "after": sum(start for _, start in work.prefills),
            "ms": took * 1e3,
            "said_ms": model.cost(work).device * 1e3,
        }
        for work, took in steps
    ]
    return msgspec.structs.replace(made, fitted=fitted)


def main() -> int:
    """Measure, write, and say how well the table fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="the checkpoint's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--threads", type=int, help="as the server's option")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="as the server's option [default: 64]")
    options = parser.parse_args()
    config = EngineConfig(
        model=options.model, threads=options.threads, max_num_seqs=options.max_num_seqs, progress=False
    )
    made = calibrate(config)
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    worst = max(made.fitted, key=lambda step: abs(step["said_ms"] / step["ms"] - 1))
    off = worst["said_ms"] / worst["ms"] - 1
    print(f"{options.out}: {len(made.fitted)} kinds of steps, the worst of them told {off:+.1%} off")
    return 0


if __name__ == "__main__":
    sys.exit(main())

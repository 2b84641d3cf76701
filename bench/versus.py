"""leoserve beside vLLM on the same machine, in one run: the same model, the same load, one server after the other.

    python bench/versus.py --vllm ENVIRONMENT --model FOLDER --output-tokens 64 --concurrency 1 16 64 --out FILE.json

ENVIRONMENT is a virtual environment with vLLM; FOLDER a checkpoint that both load. vLLM gets what it recommends for a
CPU: all cores bound, tcmalloc and Intel's OpenMP where they are installed. The load is `vllm bench serve`'s, not ours:
random prompts, streamed completions at its default temperature, a fixed length of answers. A server that is up has
answered one request before it is measured.

Prints a table and writes JSON: output tokens a second, time to first token, time between tokens, time until the server
was ready, and the ratios of leoserve to vLLM. Whatever else runs on the machine falsifies it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
KEPT = (  # of what the load tester reports
    "completed",
    "failed",
    "duration",
    "output_throughput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_itl_ms",
    "p99_itl_ms",
)
START_SECONDS = 600


def main() -> int:
    """The exit code: 0 when no request failed."""
    options = _options()
    result: dict[str, Any] = {
        "command": " ".join(["python", "bench/versus.py", *_told(options)]),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "settings": {"input_tokens": options.input_tokens, "output_tokens": options.output_tokens, "dtype": "bfloat16"},
        "servers": {},
    }
    for name in options.servers:
        measured: dict[str, Any] = {"runs": {}}
        result["servers"][name] = measured
        with _server(name, options) as (port, seconds):
            measured["ready_seconds"] = round(seconds, 1)
            for clients in options.concurrency:
                measured["runs"][str(clients)] = _load(options, port, clients)
                print(name, clients, json.dumps(measured["runs"][str(clients)]), flush=True)
    _compare(result)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    runs = [run for server in result["servers"].values() for run in server["runs"].values()]
    return int(any(run["failed"] for run in runs))


def _compare(result: dict[str, Any]) -> None:
    """Adds and prints the ratios, if both servers ran."""
    ours, theirs = (result["servers"].get(name, {}).get("runs", {}) for name in ("leoserve", "vllm"))
    result["ratios"] = {
        clients: {
            "output_throughput": round(ours[clients]["output_throughput"] / theirs[clients]["output_throughput"], 3),
            "median_ttft": round(ours[clients]["median_ttft_ms"] / theirs[clients]["median_ttft_ms"], 3),
        }
        for clients in ours
        if clients in theirs
    }
    for clients, ratio in result["ratios"].items():
        print(f"{clients:>4} clients: {ratio['output_throughput']:.2f} times the tokens a second of vLLM", flush=True)


@contextmanager
def _server(name: str, options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """The server's port, and the seconds from its start until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command, environment = _vllm(options, port) if name == "vllm" else _leoserve(options, port)
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, port)
            yield port, time.monotonic() - begin
        except RuntimeError:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-3000:])
            raise
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until a completion is answered. Raises RuntimeError when the server ends or takes too long."""
    body = {"model": "m", "prompt": "Die Stadt", "max_tokens": 4}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError("the server did not come up")


def _vllm(options: argparse.Namespace, port: int) -> tuple[list[str], dict[str, str]]:
    folder: Path = options.vllm
    preloaded = [file for file in (TCMALLOC, folder / "lib" / "libiomp5.so") if file.exists()]
    environment = os.environ | {
        "LD_PRELOAD": ":".join(map(str, preloaded)),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{len(os.sched_getaffinity(0)) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(folder / "bin" / "vllm"), "serve", str(options.model), "--served-model-name", "m"]
    return [*command, "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "4096"], environment


def _leoserve(options: argparse.Namespace, port: int) -> tuple[list[str], dict[str, str]]:
    roots = os.pathsep.join(str(ROOT / root) for root in ("server", "kernels"))
    command = [sys.executable, "-m", "leoserve", "serve", str(options.model), "--served-model-name", "m"]
    command += ["--port", str(port), "--dtype", "bfloat16", "--max-model-len", "4096"]
    return command, os.environ | {"PYTHONPATH": roots}


def _load(options: argparse.Namespace, port: int, clients: int) -> dict[str, Any]:
    """What `vllm bench serve` measured with so many clients at a time."""
    requests = max(options.least_requests, clients * options.requests_per_client)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(options.vllm / "bin" / "vllm"), "bench", "serve", "--backend", "openai", "--model", "m"]
        command += ["--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/completions", "--seed", "1"]
        command += ["--tokenizer", str(options.model), "--dataset-name", "random", "--ignore-eos"]
        command += ["--max-concurrency", str(clients), "--num-prompts", str(requests)]
        command += ["--random-input-len", str(options.input_tokens), "--random-output-len", str(options.output_tokens)]
        command += ["--percentile-metrics", "ttft,tpot,itl", "--save-result", "--result-dir", folder]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        files = list(Path(folder).glob("*.json"))
        if done.returncode or not files:
            raise RuntimeError(f"vllm bench serve failed: {done.stderr[-2000:]}")
        found = json.loads(files[0].read_text(encoding="utf-8"))
    kept: dict[str, Any] = {key: round(float(found.get(key, 0)), 3) for key in KEPT}
    return kept | {"requests": requests}


def _told(options: argparse.Namespace) -> list[str]:
    """The options that matter for the figures; folders by their names."""
    clients = [str(count) for count in options.concurrency]
    return [
        *("--model", options.model.name, "--input-tokens", str(options.input_tokens)),
        *("--output-tokens", str(options.output_tokens), "--concurrency", *clients),
        *("--requests-per-client", str(options.requests_per_client)),
    ]


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/versus.py", description="leoserve beside vLLM on this machine.")
    parser.add_argument("--vllm", type=Path, required=True, help="a virtual environment with vLLM")
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--least-requests", type=int, default=6)
    parser.add_argument("--servers", nargs="+", choices=["vllm", "leoserve"], default=["vllm", "leoserve"])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Whether `leobench simulate` says what a real server does: the same loads on both, side by side.

    python bench/simulationcheck.py MODEL --out bench/results/simulation-cpu.json --threads 1

Calibrates (see `calibrate.py`), starts a server of the model, measures loads of one, 16 and 64 users with lengths that
calibrating did not use, and simulates the same. Prints what differs; exit code 1 when throughput or a median latency is
told more than 15% off. Each load has a seed of its own: of prompts that the server met in the load before, its cache
would know the beginnings, and the simulated one does not. Its figures are of this machine and hour: nothing else should
run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from calibrate import SOURCES, calibrate, load, server

from leobench.records import Run, read
from leobench.simulate.calibrated import Calibration
from leobench.summary import summarize
from leoserve.engine.config import EngineConfig

BOUND = 0.15
FIRST_SEED = 11  # of the loads; calibrating has 1
LENGTHS = ("--input-tokens", "uniform:32:200", "--output-tokens", "uniform:32:96")


def simulate(calibration: Calibration, *options: str) -> Run:
    """What `leobench simulate` says."""
    with tempfile.TemporaryDirectory() as folder:
        table, file = Path(folder) / "calibration.json", Path(folder) / "run.json"
        table.write_bytes(msgspec.json.encode(calibration))
        command = [sys.executable, "-m", "leobench", "simulate", "--calibration", str(table), "--workload", "random"]
        command += ["--out", str(file), *options]
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": SOURCES})
        found = read(file)
    if not isinstance(found, Run):
        raise TypeError(f"{file.name} is not the result of one run")
    return found


def figures(run: Run) -> dict[str, float]:
    """Throughput in tokens a second, and medians in milliseconds."""
    summary = summarize(run)
    medians = {f"{key}_p50_ms": summary[key]["p50"] * 1e3 for key in ("ttft", "itl", "tpot", "e2e")}
    return {"output_tokens_s": summary["throughput"]["output_tokens_s"], **medians}


def beside(config: EngineConfig, users: list[int], requests: list[int]) -> dict[str, Any]:
    """Calibrate, measure, simulate."""
    calibration = calibrate(config)
    rows = []
    with server(config) as (_, url):
        load(url, *LENGTHS, "--seed", "99", "--concurrency", "4", "--requests", "8")
        for seed, (concurrency, count) in enumerate(zip(users, requests, strict=True), FIRST_SEED):
            options = (*LENGTHS, "--concurrency", str(concurrency), "--requests", str(count), "--seed", str(seed))
            run = load(url, *options)
            if known := sum(record.cached_tokens or 0 for record in run.requests):
                raise SystemExit(f"simulationcheck: the server knew {known} tokens of prompts that should be new")
            measured, simulated = figures(run), figures(simulate(calibration, *options))
            off = {key: simulated[key] / value - 1 for key, value in measured.items()}
            row = {"users": concurrency, "requests": count, "measured": measured, "simulated": simulated, "off": off}
            rows.append(row)
            print(f"{concurrency:>4} users: " + ", ".join(f"{key} {value:+.1%}" for key, value in off.items()))
    worst = max(abs(value) for row in rows for value in row["off"].values())
    return {"worst_off": worst, "loads": rows, "calibration": msgspec.to_builtins(calibration)}


def main() -> int:
    """0: within the bound. 1: not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="the checkpoint's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="gets an entry for the model")
    parser.add_argument("--threads", type=int, help="as the server's option")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, nargs="+", default=[40, 112, 320], help="of each load")
    options = parser.parse_args()
    config = EngineConfig(model=options.model, threads=options.threads, max_num_seqs=64, progress=False)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    found = beside(config, options.users, options.requests)
    name = Path(options.model).resolve().name
    results[name] = {"command": f"python bench/simulationcheck.py {name} --threads {options.threads}", **found}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{options.out}: at most {found['worst_off']:.1%} off")
    return int(found["worst_off"] > BOUND)


if __name__ == "__main__":
    sys.exit(main())

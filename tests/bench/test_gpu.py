"""bench/gpu.py costs no lease a typo: every stage runs here with tiny sizes, and failures stay within their stage."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from gpustages import attention, checks
from gpustages.command import Outcome, _read, run_stages
from gpustages.idle import busy_time
from gpustages.machine import SERVER_NEEDS
from gpustages.place import Place
from gpustages.results import Results
from gpustages.stages import BY_NAME, STAGES, TOTAL_SECONDS, Measurement, Stage
from gpustages.warming import PROCESSES, every
from tests.conftest import PATIENCE

ROOT = Path(__file__).parents[2]
NINE_MINUTES = 540


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.here(tiny=True, scratch=tmp_path, ceilings={"gb_s": 10.0}, deadline=time.monotonic() + 1000)


def stage(name: str, seconds: float = 10.0) -> Stage:
    return Stage(name, 1, name, seconds, "nowhere:nothing")


class Fakes:
    """Stages that take the time and end the way they are told to, by a clock of their own."""

    def __init__(self, **endings: tuple[float, str]) -> None:
        self.now = 100.0
        self.endings = endings
        self.allowed: dict[str, float] = {}

    def clock(self) -> float:
        return self.now

    def launch(self, stage: Stage, seconds: float, take: object) -> Outcome:
        self.allowed[stage.name] = seconds
        takes, ending = self.endings[stage.name]
        self.now += min(takes, seconds)
        assert callable(take)
        take({"name": f"{stage.name}'s", "gb_s": 5.0})
        if ending == "raises":
            raise OSError("no process")
        return Outcome("cut" if takes > seconds else ending, "why" if ending == "failed" else "")


def run(fakes: Fakes, folder: Path, seconds: float) -> Results:
    results = Results(folder, tiny=True)
    run_stages(
        [stage(name) for name in fakes.endings], results, launch=fakes.launch, clock=fakes.clock, seconds=seconds
    )
    return results


def test_a_stage_that_fails_is_recorded_and_the_next_is_run(tmp_path: Path) -> None:
    results = run(Fakes(a=(1, "failed"), b=(1, "raises"), c=(1, "done")), tmp_path, 30)
    assert [found.status for found in results.stages] == ["failed", "failed", "done"]
    assert [found.error for found in results.stages] == ["why", "OSError: no process", ""]
    assert not results.succeeded
    written = json.loads((tmp_path / "results.json").read_text())
    assert [found["measurements"][0]["name"] for found in written["stages"]] == ["a's", "b's", "c's"]
    assert "why" in (tmp_path / "results.md").read_text()


def test_the_whole_keeps_within_its_time_and_what_a_stage_leaves_over_goes_to_the_next(tmp_path: Path) -> None:
    fakes = Fakes(a=(2, "done"), b=(1000, "done"), c=(1000, "done"))
    results = run(fakes, tmp_path, 30)
    assert fakes.allowed == {"a": 10, "b": 18, "c": 10}
    assert [found.status for found in results.stages] == ["done", "cut", "cut"]
    assert [found.seconds for found in results.stages] == [2, 18, 10]
    assert fakes.now == 130


def test_all_stages_together_stay_under_nine_minutes() -> None:
    assert TOTAL_SECONDS + 3 * len(STAGES) < NINE_MINUTES + 10
    assert TOTAL_SECONDS < NINE_MINUTES
    assert {found.number for found in STAGES} == {1, 2, 3, 4, 5, 6, 7}


def test_results_are_written_before_a_stage_ends(tmp_path: Path) -> None:
    results = Results(tmp_path, tiny=True)

    def launch(stage: Stage, seconds: float, take: object) -> Outcome:
        assert callable(take)
        take({"name": "early", "ms": 1.0})
        written = json.loads((tmp_path / "results.json").read_text())["stages"][0]
        assert (written["status"], written["measurements"]) == ("running", [{"name": "early", "ms": 1.0}])
        return Outcome("done")

    run_stages([stage("a")], results, launch=launch, clock=time.monotonic, seconds=5)
    assert results.succeeded


def test_the_table_holds_rates_against_what_was_measured_and_the_datasheet(tmp_path: Path) -> None:
    results = Results(tmp_path, tiny=False)
    found = results.begin(stage("a")).measurements
    found += [
        {"name": "copy", "ceiling": "gb_s", "gb_s": 4300.0, "ms": 2.0, "spread_ms": [1.9, 2.1]},
        {"name": "decode", "gb_s": 2150.0, "ms": 1.0},
        {"name": "tokens", "tokens_s": 90.0, "ceiling_tokens_s": 100.0},
        {"name": "right", "ok": True},
        {"name": "kernel", "ok": False, "error": 0.5},
        {"name": "other", "note": "not there"},
    ]
    table = results.table()
    assert "| copy | 2 (1.9 to 2.1) | 4300 GB/s | 100.0% | 89.6% |" in table
    assert "| decode | 1 | 2150 GB/s | 50.0% | 44.8% |" in table
    assert "| tokens |  | 90 tok/s | 90.0% | 80.6% |" in table
    assert "1 of 2 checks hold" in table
    assert "WRONG: kernel** (error 0.5)" in table
    assert "- other: not there" in table
    assert not results.succeeded


def test_a_process_that_hangs_is_ended_and_what_it_said_is_kept() -> None:
    code = 'import time; print(\'{"name": "first"}\', flush=True); time.sleep(600)'
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    found: list[Measurement] = []
    assert _read(process, 3.0, found.append)
    assert found == [{"name": "first"}]
    assert process.returncode


def test_a_process_that_ends_in_time_is_not_cut() -> None:
    code = "print('noise'); print('{\"name\": \"only\"}')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    found: list[Measurement] = []
    assert not _read(process, 100.0, found.append)
    assert found == [{"name": "only"}]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, str(ROOT / "bench/gpu.py"), *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=PATIENCE)


def test_the_command_runs_a_stage_in_its_own_process_and_leaves_three_files(tmp_path: Path) -> None:
    done = command("--tiny", "--only", "machine", "--out", str(tmp_path), "--seconds", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["stages"][0]["status"] == "done"
    assert set(written["ceilings"]) == {"gb_s", "tflop_s"}
    assert "| copy |" in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.json", "results.log", "results.md"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_for_every_stage(tmp_path: Path) -> None:
    done = command("--only", "machine", "graphs", "--out", str(tmp_path), "--seconds", "200")
    assert done.returncode == 1
    written = json.loads((tmp_path / "results.json").read_text())
    assert [found["status"] for found in written["stages"]] == ["failed", "failed"]
    assert all("torch sees no GPU here" in found["error"] for found in written["stages"])


def test_a_stage_whose_time_is_up_stops_after_the_measurement_it_was_at(tmp_path: Path) -> None:
    done = command("--tiny", "--stage", "machine", "--seconds", "0", "--scratch", str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, rest = (json.loads(line) for line in done.stdout.splitlines())
    assert first["name"] == "versions"
    assert "time was up" in rest["note"]


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "machine"])
def test_a_stage_runs_to_its_end_with_tiny_sizes_and_its_checks_hold(name: str, place: Place) -> None:
    with torch.inference_mode():
        found = list(BY_NAME[name].load()(place))
    assert found
    assert json.loads(json.dumps(found)) == found
    assert [entry for entry in found if not entry.get("ok", True)] == []
    measured = [entry for entry in found if "ms" in entry or "ok" in entry]
    assert measured or name == "transformers"
    assert all(entry["ms"] > 0 for entry in found if "ms" in entry)


def test_kernels_to_compile_are_shared_out_without_loss() -> None:
    calls = [partial(int, number) for number in range(2 * PROCESSES + 3)]
    parts = [list(every(calls, part)) for part in range(PROCESSES)]
    assert sorted(call() for part in parts for call in part) == list(range(2 * PROCESSES + 3))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_a_process_that_compiles_is_given_can_be_sent_to_it(place: Place) -> None:
    sent = pickle.loads(pickle.dumps((replace(place), checks._calls, attention._tile_calls)))
    assert (sent[0].device, sent[0].dtype) == (place.device, place.dtype)


@pytest.mark.parametrize(
    ("spans", "busy", "whole"),
    [([], 0, 0), ([(1, 3)], 2, 2), ([(0, 2), (1, 3), (5, 6)], 4, 6), ([(0, 10), (1, 2), (4, 12)], 12, 12)],
)
def test_time_that_kernels_overlap_counts_once(spans: list[tuple[float, float]], busy: float, whole: float) -> None:
    assert busy_time(spans) == (busy, whole)


# Of what the server needs, what a machine with PyTorch, Triton and transformers has anyway.
THERE = {"huggingface_hub", "jinja2", "numpy", "prometheus_client", "protobuf", "psutil", "pydantic", "pyyaml",
         "safetensors", "sentencepiece", "tokenizers", "torch", "tqdm", "transformers", "uvloop"}  # fmt: skip


def test_what_the_server_needs_is_among_the_wheels_that_travel_or_there_anyway() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = (ROOT / "bench/gpu.py").read_text()
    needed = {re.split(r"[<>=;]", line)[0]: line for line in project["dependencies"]}
    assert [line for name, line in needed.items() if name not in THERE and f"'{line}'" not in said] == []
    modules = {"pyzmq": "zmq"}
    travel = {modules.get(name, name).replace("-", "_") for name in needed.keys() - THERE}
    assert travel <= set(SERVER_NEEDS)

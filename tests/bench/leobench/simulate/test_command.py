"""`leobench simulate` as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from leobench.records import Run, Sweep, read
from leobench.simulate.calibrated import Calibrated, Calibration, Unreadable, read_calibration
from leobench.simulate.hardware import GPUS
from leobench.simulate.work import Work
from leobench.summary import summarize
from tests.conftest import ROOT, clean_environment

CALIBRATION = Calibration(
    model="made-up",
    machine={"device": "cpu"},
    engine={
        "max_num_seqs": 16,
        "max_tokens_per_step": 512,
        "max_model_len": 2048,
        "block_size": 16,
        "num_blocks": 1024,
        "deterministic": True,
        "prefill_stretch": None,
    },
    tokens=[1, 4, 100],
    seconds=[0.010, 0.013, 0.109],
    prompt=0.001,
    sampled=0.0005,
    key=1e-6,
    pair=1e-7,
)


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leobench", "simulate", *options]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)


def result(file: Path, *options: str) -> Run:
    done = simulate(*options, "--out", str(file))
    assert done.returncode == 0, done.stderr
    found = read(file)
    assert isinstance(found, Run)
    return found


def test_users_on_gpus_are_told_as_a_measured_run_is(tmp_path: Path) -> None:
    run = result(tmp_path / "run.json", "--gpus", "2", "--users", "40", "--duration", "60", "--slo", "ttft=500ms")
    assert run.kind == "simulated"
    assert run.target["gpus"] == 2
    assert run.target["urls"] == ["replica 1", "replica 2"]
    assert "measured" in run.target["rates"]
    assert run.measured_from == 6
    assert run.measured_until == 60
    assert run.load["concurrency"] == 40
    summary = summarize(run)
    assert summary["requests"]["failed"] == 0
    assert summary["goodput"]["share"] == 1
    assert 0.004 < summary["itl"]["p50"] < 0.01  # of an H200 that has little to do
    assert {record.url for record in run.requests} == {0, 1}


def test_the_report_shows_what_was_simulated(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    result(file, "--rate", "2", "--requests", "20", "--workload", "chat")
    command = [sys.executable, "-m", "leobench", "report", str(file)]
    subprocess.run(command, env=clean_environment(), check=True, capture_output=True)
    assert "7b: chat, 2 requests/s" in (tmp_path / "run.html").read_text()


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    options = ("--rate", "20", "--requests", "100")
    one, again, other = (
        result(tmp_path / name, *options, "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert one.requests == again.requests
    assert one.requests != other.requests


def test_a_search_finds_the_most_users_that_keep_an_slo(tmp_path: Path) -> None:
    """Few users keep a bound that many do not, who wait for one of 64 places."""
    file = tmp_path / "sweep.json"
    options = ["--search", "10:1000", "--keep", "p99 ttft <= 300 ms", "--think", "2", "--duration", "20"]
    done = simulate(*options, "--tolerance", "0.5", "--max-num-seqs", "64", "--out", str(file))
    assert done.returncode == 0, done.stderr
    sweep = read(file)
    assert isinstance(sweep, Sweep)
    assert 10 < sweep.search["highest"] < sweep.search["lowest_broken"] <= 1000
    kept = {value: summarize(run)["ttft"]["p99"] <= 0.3 for value, run in zip(sweep.values, sweep.runs, strict=True)}
    assert kept[sweep.search["highest"]]
    assert not kept[sweep.search["lowest_broken"]]
    assert all(run.kind == "simulated" for run in sweep.runs)
    assert f"concurrency {sweep.search['highest']:g} keeps p99 ttft <= 300 ms" in done.stdout


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_of_the_table_can_be_simulated(gpu: str, tmp_path: Path) -> None:
    run = result(tmp_path / "run.json", "--gpu", gpu, "--rate", "1", "--requests", "5", "--max-model-len", "4096")
    assert run.target["gpu"] == GPUS[gpu].name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpus", "3", "--tensor-parallel", "2"], "no whole number of replicas"),
        (["--model", "70b"], "less than one sequence of 8192 tokens"),
        (["--model", "70b", "--gpus", "16", "--tensor-parallel", "16"], "8 KV heads do not divide among 16 GPUs"),
        (["--model", "/nowhere"], "no such folder"),
        (["--calibration", "/nowhere.json"], "/nowhere.json"),
        (["--calibration", "/nowhere.json", "--kv-dtype", "fp8"], "leave out --kv-dtype"),
        (["--users", "3", "--rate", "3"], "give one of them"),
        (["--users", "3", "--search", "1:9", "--keep", "p99 ttft <= 1 s"], "leave out --users"),
        (["--keep", "p99 ttft <= 1 s"], "--keep belongs to --search"),
        (["--workload", "trace"], "needs --trace"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_line(options: list[str], says: str) -> None:
    done = simulate(*options)
    assert done.returncode == 2
    assert re.fullmatch(r"leobench: error: .*\n", done.stderr)
    assert says in done.stderr


def test_a_folder_is_simulated_by_its_config_alone(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2048,
        "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1000, "max_position_embeddings": 4096,
        "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--model", str(tmp_path), "--rate", "5", "--requests", "10", "--workload", "chat")
    assert "products in float32 are not modelled" in simulate(*options).stderr
    run = result(tmp_path / "run.json", *options, "--dtype", "bfloat16")
    assert summarize(run)["itl"]["p50"] < 0.001


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    """With eight seconds in place of five minutes."""
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    lines = re.findall(r"^leobench (simulate .*)$", page, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        words = [*shlex.split(line, comments=True)[1:], "--duration", "8", "--out", str(tmp_path / "result.json")]
        done = simulate(*words)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        read(tmp_path / "result.json")


def test_simulating_needs_no_torch() -> None:
    """It would take longer to import than most simulations do."""
    code = "import sys, leobench.simulate.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=False).returncode == 0


def test_a_calibration_prices_a_step() -> None:
    model = Calibrated(CALIBRATION)
    assert model.cost(Work(1, 50, (), 1)).device == pytest.approx(0.010 + 0.0005 + 50e-6)
    assert model.cost(Work(2, 0, (), 2)).device == pytest.approx(0.011 + 0.001)
    assert model.cost(Work(0, 0, ((200, 10),), 1)).device == pytest.approx(
        0.209 + 0.0005 + 0.001 + (200 * 10 + 200 * 201 // 2) * 1e-7
    )


def test_a_calibrated_machine_is_simulated_from_its_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(msgspec.json.encode(CALIBRATION))
    assert read_calibration(file) == CALIBRATION
    options = ("--workload", "random", "--input-tokens", "96", "--output-tokens", "11", "--concurrency", "1")
    run = result(tmp_path / "run.json", "--calibration", str(file), "--requests", "5", *options)
    assert run.target["model"] == "made-up"
    for record in run.requests:
        assert record.first is not None
        prompt = 0.013 + 96 * (92 / 96) * 0.001 + 0.0005 + 0.001 + 96 * 97 // 2 * 1e-7
        assert record.first - record.intended == pytest.approx(prompt)
        steps = [later - earlier for earlier, later in zip(record.chunk_times, record.chunk_times[1:], strict=False)]
        assert steps == pytest.approx([0.0105 + keys * 1e-6 for keys in range(97, 107)])


@pytest.mark.parametrize(
    ("change", "says"), [({"schema": "other"}, "its schema is 'other'"), ({"tokens": [4, 1, 100]}, "no table")]
)
def test_a_file_that_is_no_calibration_is_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(msgspec.to_builtins(CALIBRATION) | change))
    with pytest.raises(Unreadable, match=says):
        read_calibration(file)

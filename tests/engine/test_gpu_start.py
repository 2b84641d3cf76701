"""How a GPU's runner starts: steps are measured before the cache is sized, and done again before anybody is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import leokernels
from leokernels.fused import TORCH
from leoserve.engine import gpu, start
from leoserve.engine.config import EngineConfig
from leoserve.engine.request import Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import SchedulerLimits
from leoserve.engine.start import start_engine
from leoserve.model import memory
from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.memory import GIB, TooLittleMemory, plan_cache
from leoserve.model.runner import Runner
from leoserve.model.weights import load_weights
from tests.checkpoints import write_checkpoint

LOAD = gpu.Load(max_num_seqs=4, max_tokens=50, max_model_len=32, block_size=16)


def test_the_largest_step_has_all_tokens_and_all_rows_sampling_with_everything() -> None:
    step = gpu.largest_step(LOAD)
    assert step.num_tokens == LOAD.max_tokens
    assert [row.count for row in step.rows] == [1, 1, 31, 17]
    assert [row.decodes for row in step.rows] == [True, True, False, False]
    assert all(row.samples and row.admitted and row.admitted.params.logprobs == gpu.MOST_LOGPROBS for row in step.rows)
    few = gpu.Load(max_num_seqs=4, max_tokens=4, max_model_len=32, block_size=16)
    assert [row.count for row in gpu.largest_step(few).rows] == [1, 1, 1, 1]


class FakeRunner:
    def __init__(self, log: list[str], blocks: int) -> None:
        self.log, self.blocks = log, blocks
        log.append(f"cache of {blocks}")

    def launch(self, step: Any) -> FakeRunner:
        self.log.append(f"step of {step.num_tokens}")
        return self

    def results(self) -> list[Any]:
        return []


class FakeMeter:
    """What is taken: before, with the graphs, with the largest step, and what stays."""

    def __init__(self) -> None:
        self.looks = iter([100, 350, 420, 130])
        self.let_goes = 0

    def taken(self) -> int:
        return next(self.looks)

    def let_go(self) -> None:
        self.let_goes += 1


def fake_runners(log: list[str]) -> gpu.RunnerFactory[FakeRunner]:
    return gpu.RunnerFactory(lambda blocks: FakeRunner(log, blocks), lambda runner: log.append("graphs"))


ALL_STEPS = ["graphs", "step of 50", "step of 31", "step of 4", "step of 1"]


def test_the_reserve_is_what_the_largest_step_and_the_graphs_took_over_one_block_and_gave_back() -> None:
    log: list[str] = []
    meter = FakeMeter()
    assert gpu.measure_reserve(fake_runners(log), LOAD, meter) == 290
    assert log == ["cache of 1", *ALL_STEPS]
    assert meter.let_goes == 2  # before, and when all of it has gone


def test_before_it_serves_a_runner_has_computed_the_largest_step_beside_its_cache() -> None:
    log: list[str] = []
    gpu.start_runner(fake_runners(log), 77, LOAD)
    assert log == ["cache of 77", *ALL_STEPS]


def test_without_graphs_the_largest_step_is_measured_all_the_same() -> None:
    log: list[str] = []
    runners: gpu.RunnerFactory[FakeRunner] = gpu.RunnerFactory(lambda blocks: FakeRunner(log, blocks), None)
    assert gpu.measure_reserve(runners, LOAD, FakeMeter()) == 290
    assert log == ["cache of 1", *ALL_STEPS[1:]]


def test_a_longest_prompt_is_scored_whole() -> None:
    (row,) = gpu.scored_prompt(LOAD).rows
    assert row.count == 31
    assert row.targets is not None
    assert len(row.targets) == 30
    assert row.admitted is not None
    assert row.admitted.params.prompt_logprobs == gpu.MOST_LOGPROBS


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return ModelConfig.from_folder(write_checkpoint(tmp_path, "70b"))


def plan(config: ModelConfig, **options: Any) -> memory.CachePlan:
    settings = {
        "dtype": torch.bfloat16, "device": torch.device("cuda"), "block_size": 64, "max_model_len": 512,
        "max_num_seqs": 1_000_000, "num_blocks": None, "memory_bytes": None, "utilization": 0.9,
    }  # fmt: skip
    return plan_cache(config, **(settings | options))


def test_the_cache_gets_what_is_left_after_the_reserve(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 20 * GIB))
    free, less = plan(config), plan(config, reserve=3 * GIB)
    assert free.num_blocks * free.block_bytes == pytest.approx(8 * GIB, rel=1e-3)
    assert less.num_blocks * less.block_bytes == pytest.approx(5 * GIB, rel=1e-3)
    with pytest.raises(TooLittleMemory):
        plan(config, reserve=9 * GIB)
    with pytest.raises(TooLittleMemory, match=r"7\.00 GiB are available"):
        plan(config, reserve=3 * GIB, memory_bytes=8 * GIB)


@pytest.mark.parametrize(
    ("options", "ahead", "recorded"), [({}, 1, 1), ({"async_scheduling": False, "enforce_eager": True}, 0, 0)]
)
def test_a_gpu_start_serves_with_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], ahead: int, recorded: int
) -> None:
    """The whole start on a CPU: kernels interpreted, recordings played back, memory as a fake has it."""
    folder = write_checkpoint(tmp_path, "7b", dtype=torch.float32)
    choice = leokernels.Choice("triton", "for this test", 16, capturable=True)
    named_triton = leokernels.Fused("triton", "for this test", TORCH.rms_norm, TORCH.rope_and_cache, TORCH.silu_and_mul)
    recordings: list[object] = []

    def recorder() -> Any:
        def record(body: Any) -> Any:
            body()
            recordings.append(body)
            return body

        return record

    monkeypatch.setattr("leoserve.engine.start.choose_kernels", lambda place, asked: (choice, named_triton))
    monkeypatch.setattr(gpu, "CudaMeter", FakeMeter)
    monkeypatch.setattr("leoserve.engine.start.CudaRecorder", recorder)
    sent: list[Any] = []
    settings = {"max_num_seqs": 2, "max_num_batched_tokens": 20, "max_model_len": 48, "num_kv_blocks": 8, "threads": 1}
    settings |= {"dtype": "float32", "device": "cpu", "deterministic": False, "token_ranges": [(0, 300)]}
    loop, ready = start_engine(EngineConfig(model=str(folder), **(settings | options)), sent.append)
    assert (loop.ahead, bool(recordings)) == (ahead, bool(recorded))
    assert ready.attention == "triton"
    request = Request(
        request_id="r", prompt=[5, 6, 7], params=SamplingParams(max_tokens=3, temperature=0.0), arrival=0.0
    )
    assert loop.scheduler.admission.admit(request) is None
    loop.submit(request)
    loop.receive()
    while loop.step():
        pass
    outputs = [output for message in sent if isinstance(message, StepOutputs) for output in message.outputs]
    assert sum(len(output.token_ids) for output in outputs) == 3
    assert outputs[-1].finish_reason == "length"


def test_a_runner_without_graphs_or_triton_is_measured_and_worked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU without Triton's kernels serves with, here on a CPU."""
    folder = write_checkpoint(tmp_path, "7b", dtype=torch.float32)
    model_config = ModelConfig.from_folder(folder)
    model = Llama(model_config, dtype=torch.float32, device=torch.device("cpu"), attention="reference")
    load_weights(model, folder, model_config, progress=None)
    model.prepare()
    monkeypatch.setattr(gpu, "CudaMeter", FakeMeter)
    steps: list[int] = []
    launch = Runner.launch
    monkeypatch.setattr(Runner, "launch", lambda self, step: steps.append(step.num_tokens) or launch(self, step))  # type: ignore[func-returns-value]
    config = EngineConfig(model=str(folder), num_kv_blocks=8)
    limits = SchedulerLimits(max_sequences=3, max_tokens_per_step=20, max_model_len=48, block_size=16)
    runners = gpu.RunnerFactory(start._runners(config, model, limits), None)
    runner, plan = start._start_measured(config, model, limits, runners)
    assert plan.num_blocks == 8
    assert runner.key_value[0].keys.shape[0] == 8
    assert steps == [20, 20, 3, 1] * 2

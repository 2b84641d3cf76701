"""How a GPU's runner starts: steps are measured before the cache is sized, and done again before anybody is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import leokernels
from leokernels.fused import TORCH
from leoserve.engine import gpu
from leoserve.engine.config import EngineConfig
from leoserve.engine.request import Request, SamplingParams, StepOutputs
from leoserve.engine.start import start_engine
from leoserve.model import memory
from leoserve.model.config import ModelConfig
from leoserve.model.memory import GIB, TooLittleMemory, plan_cache
from tests.checkpoints import write_checkpoint

LOAD = gpu.Load(max_num_seqs=4, max_tokens=50, max_model_len=32, block_size=16, graphs=True)


def test_the_largest_step_has_all_tokens_and_all_rows_sampling_with_everything() -> None:
    step = gpu.largest_step(LOAD)
    assert step.num_tokens == LOAD.max_tokens
    assert [row.count for row in step.rows] == [1, 1, 31, 17]
    assert [row.decodes for row in step.rows] == [True, True, False, False]
    assert all(row.samples and row.admitted and row.admitted.params.logprobs == gpu.MOST_LOGPROBS for row in step.rows)
    few = gpu.Load(max_num_seqs=4, max_tokens=4, max_model_len=32, block_size=16, graphs=True)
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

    def record(self, recorder: object) -> Any:
        self.log.append("graphs")

        class Graphs:
            sizes = (1, 2)

        return Graphs


class FakeMeter:
    """What is taken grows with every look, and is given back on request."""

    def __init__(self) -> None:
        self.looks = iter([100, 350, 420])
        self.let_goes = 0

    def taken(self) -> int:
        return next(self.looks)

    def let_go(self) -> None:
        self.let_goes += 1


def test_the_reserve_is_what_the_largest_step_and_the_graphs_took_over_one_block() -> None:
    log: list[str] = []
    meter = FakeMeter()
    reserve = gpu.measure_reserve(
        lambda blocks: FakeRunner(log, blocks),  # type: ignore[arg-type, return-value]
        LOAD,
        meter=meter,
        recorder=lambda: None,  # type: ignore[arg-type, return-value]
    )
    assert reserve == 320
    assert log == ["cache of 1", "graphs", "step of 50", "step of 31", "step of 4"]
    assert meter.let_goes == 2  # before, and when all of it has gone


def test_before_it_serves_a_runner_has_computed_the_largest_step_beside_its_cache() -> None:
    log: list[str] = []
    gpu.start_runner(
        lambda blocks: FakeRunner(log, blocks),  # type: ignore[arg-type, return-value]
        77,
        LOAD,
        recorder=lambda: None,  # type: ignore[arg-type, return-value]
    )
    assert log == ["cache of 77", "graphs", "step of 50", "step of 31", "step of 4"]


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

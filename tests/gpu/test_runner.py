"""The GPU's runner: nothing in a step waits for the device, and a recorded step is the step that was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from leokernels.fused import triton_functions
from leokernels.triton.state import SamplingState
from leoserve.model.config import ModelConfig
from leoserve.model.device import DeviceRunner
from leoserve.model.graphs import CudaRecorder
from leoserve.model.llama import Llama
from leoserve.model.step import Admitted, Row, SamplingParams, Step
from leoserve.model.weights import load_weights
from tests.checkpoints import write_checkpoint

SLOTS, BLOCK_SIZE, BLOCKS, LENGTH = 12, 64, 80, 400
LIVE = 440  # ids with a token
ROUNDING = 0.08  # of a logit in half precision; logits spread by about 1.6
SAMPLINGS = (
    SamplingParams(max_tokens=50, temperature=0.0),
    SamplingParams(max_tokens=50, temperature=0.8, top_p=0.9, top_k=30, seed=3, logprobs=5),
    SamplingParams(max_tokens=50, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.1, seed=4),
    SamplingParams(max_tokens=50, logit_bias={5: 2.0}, bad_words=((7,),), min_tokens=3, stop_token_ids=(2,), seed=5),
)
GREEDY = [slot for slot in range(8) if SAMPLINGS[slot % len(SAMPLINGS)].temperature == 0]


@pytest.fixture(scope="module", params=["7b", "70b", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("leo"), request.param, dtype=torch.bfloat16)


@pytest.fixture(params=[None, torch.int8, torch.float8_e4m3fn], ids=["bf16", "int8", "fp8"])
def runner(folder: Path, request: pytest.FixtureRequest) -> DeviceRunner:
    device = torch.device("cuda", 0)
    config = ModelConfig.from_folder(folder)
    model = Llama(
        config,
        dtype=torch.bfloat16,
        device=device,
        attention="triton",
        fused=triton_functions("for this test"),
        kv_dtype=request.param,
    )
    load_weights(model, folder, config, progress=None)
    state = SamplingState.empty(SLOTS, config.vocab_size, range(LIVE, config.vocab_size), device)
    return DeviceRunner(
        model, state, num_blocks=BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=SLOTS, max_model_len=LENGTH
    )


def prompts_step(slots: int = 8) -> Step:
    """Prompts of several lengths, each slot with parameters of its own; a scored one among them."""
    rows = []
    for slot in range(slots):
        tokens = [3 + (slot * 31 + place * 7) % 400 for place in range(20 + 25 * slot)]
        blocks = list(range(slot * 6, slot * 6 + 6))
        new = Admitted(SAMPLINGS[slot % len(SAMPLINGS)], 0, tokens, [])
        rows.append(Row(slot, 0, tokens, first_new_block=0, new_blocks=blocks, samples=True, admitted=new))
    return Step(rows)


def decode_row(slot: int, step: int) -> Row:
    return Row(slot, 20 + 25 * slot + step, None, first_new_block=6, new_blocks=[], samples=True, decodes=True)


def decode_step(step: int, slots: int = 8) -> Step:
    return Step([decode_row(slot, step) for slot in range(slots)])


def mixed_step(step: int) -> Step:
    """Decode rows beside a part of a prompt that goes on, and another that begins with copied blocks."""
    tokens = [3 + place % 300 for place in range(70)]
    params = SamplingParams(max_tokens=5, temperature=0.0, prompt_logprobs=2)
    new = Admitted(params, 0, tokens, [])
    prompt = Row(9, 0, tokens, first_new_block=0, new_blocks=[60, 61], samples=True, admitted=new, targets=tokens[1:])
    return Step([*(decode_row(slot, step) for slot in range(8)), prompt], copies=[(0, 70), (6, 71)])


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "graphs"])
def test_no_launch_waits_for_the_device(runner: DeviceRunner, recorded: bool) -> None:
    if recorded:
        runner.record(CudaRecorder())
    for step in (prompts_step(), decode_step(0), mixed_step(1)):  # compiles, and fills caches of pinned memory
        runner.launch(step).results()
    with no_waiting():
        launched = [runner.launch(step) for step in (prompts_step(), decode_step(0), mixed_step(1), decode_step(2))]
    for one in launched:
        assert all(result.error is None for result in one.results())


def test_a_sync_would_have_been_seen() -> None:
    values = torch.ones(3, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        values.sum().item()


def test_a_replay_has_the_bits_of_what_it_recorded(runner: DeviceRunner) -> None:
    runner.launch(prompts_step()).results()
    graphs = runner.record(CudaRecorder())
    for rows in range(1, 9):
        size = graphs.size_for(rows)
        assert size is not None
        inputs = torch.full((2, size), -1, dtype=torch.int32, device="cuda")
        inputs[0, :rows] = torch.arange(rows)
        inputs[1, :rows] = torch.tensor([20 + 25 * slot for slot in range(rows)])
        with torch.inference_mode():
            expected = runner._decode(*inputs)[:rows].clone()
            found = graphs.replay(inputs, size)[:rows]
        assert found.isfinite().all()
        assert torch.equal(found, expected), f"{rows} rows"


def test_steps_with_and_without_graphs_have_the_same_logits_and_greedy_tokens_are_their_best(
    runner: DeviceRunner,
) -> None:
    """Each step is given the same tokens before it: were they its own, one near tie would part all steps after it."""
    eager = forced_steps(runner)
    runner.record(CudaRecorder())
    recorded = forced_steps(runner)
    for number, (left, right) in enumerate(zip(eager, recorded, strict=True)):
        difference = (left - right).abs().max().item()
        assert difference <= ROUNDING, f"step {number}: logits differ by {difference}"


def forced_steps(runner: DeviceRunner, steps: int = 20) -> list[torch.Tensor]:
    """Logits [8, vocab] of each decode step. Asserts that greedy rows get the most likely token that there is."""
    found: list[torch.Tensor] = []
    compute = runner._replay_or_decode

    def kept(rows: list[Row]) -> torch.Tensor:
        logits = compute(rows)
        found.append(logits.clone())
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_replay_or_decode", kept)
        runner.launch(prompts_step()).results()
        for number in range(steps):
            forced = torch.tensor([3 + (number * 53 + slot * 17) % 400 for slot in range(8)])
            runner.state.last_token[:8] = forced.to(runner.device)
            results = runner.launch(decode_step(number)).results()
            best = found[-1][:, :LIVE].argmax(-1).tolist()
            assert all(result.error is None for result in results)
            assert [results[slot].token for slot in GREEDY] == [best[slot] for slot in GREEDY]
    assert len(found) == steps
    return found


def test_recording_leaves_what_slots_and_cache_hold(runner: DeviceRunner) -> None:
    runner.launch(prompts_step()).results()
    before = [part.clone() for cache in runner.key_value for part in cache.tensors()]
    runner.record(CudaRecorder())
    torch.cuda.synchronize()
    after = [part for cache in runner.key_value for part in cache.tensors()]
    used = 8 * 6
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left[:used].view(torch.uint8), right[:used].view(torch.uint8))

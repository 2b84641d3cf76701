"""The GPU's runner, on a CPU: its kernels interpreted, its results late, its recordings played back by the function.

What only a GPU can show (that a recording replays the same, that nothing waits) is in tests/gpu.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from leokernels.triton.state import SamplingState
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Request, SamplingParams, StepOutputs, TokenOutput
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model.config import ModelConfig
from leoserve.model.device import DeviceRunner
from leoserve.model.graphs import DecodeGraphs, graph_sizes
from leoserve.model.llama import Llama
from leoserve.model.runner import Runner
from leoserve.model.sampler import Sampler
from leoserve.model.step import RowResult, Step
from leoserve.model.weights import load_weights
from tests.checkpoints import write_checkpoint

CPU = torch.device("cpu")
VOCAB = 300  # ids that may be sampled
SLOTS, BLOCK_SIZE, BLOCKS, LENGTH = 5, 16, 24, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("7b"), "7b", dtype=torch.float32)


def load(folder: Path, **kernels: object) -> Llama:
    config = ModelConfig.from_folder(folder)
    model = Llama(config, dtype=torch.float32, device=CPU, **kernels)  # type: ignore[arg-type]
    load_weights(model, folder, config, progress=None)
    return model


def device_runner(folder: Path, attention: str = "triton") -> DeviceRunner:
    model = load(folder, attention=attention)  # the other functions in torch: interpreting takes its time
    state = SamplingState.empty(SLOTS, model.config.vocab_size, range(VOCAB, model.config.vocab_size), CPU)
    return DeviceRunner(
        model, state, num_blocks=BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=SLOTS, max_model_len=LENGTH
    )


def host_runner(folder: Path) -> Runner:
    model = load(folder, attention="reference")
    sampler = Sampler(max_slots=SLOTS, vocab_size=model.config.vocab_size, token_ranges=[(0, VOCAB)], device=CPU)
    return Runner(model, sampler, num_blocks=BLOCKS, block_size=BLOCK_SIZE, max_num_seqs=SLOTS, max_model_len=LENGTH)


class Late:
    """Computes each step of a runner only when its results are asked for."""

    def __init__(self, runner: DeviceRunner) -> None:
        self.runner = runner
        self.queue: deque[LateStep] = deque()

    def launch(self, step: Step) -> LateStep:
        self.queue.append(LateStep(self, step))
        return self.queue[-1]


class LateStep:
    def __init__(self, late: Late, step: Step) -> None:
        self.late, self.step = late, step

    def ended(self, *, wait: bool) -> Sequence[int]:
        return ()

    def results(self) -> list[RowResult]:
        assert self.late.queue.popleft() is self
        return self.late.runner.launch(self.step).results()


class Engine:
    """A loop around a runner, and what it has sent."""

    def __init__(self, runner: object, *, ahead: int, blocks: int = BLOCKS) -> None:
        limits = SchedulerLimits(
            max_sequences=SLOTS, max_tokens_per_step=24, max_model_len=LENGTH, block_size=BLOCK_SIZE
        )
        admission = Admission(capacity=LENGTH, max_waiting=100, max_waiting_tokens=10_000)
        self.sent: dict[tuple[str, int], list[TokenOutput]] = {}
        self.loop = EngineLoop(Scheduler(limits, BlockPool(blocks), admission), runner, self._receive, ahead=ahead)  # type: ignore[arg-type]

    def _receive(self, message: object) -> None:
        assert isinstance(message, StepOutputs)
        for output in message.outputs:
            self.sent.setdefault((output.request_id, output.index), []).append(output)

    def answer(self, prompts: list[list[int]], **params: object) -> dict[tuple[str, int], list[int]]:
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(**{"max_tokens": 5, "temperature": 0.0} | params)  # type: ignore[arg-type]
            request = Request(request_id=f"r{number}", prompt=prompt, params=sampling, arrival=float(number))
            assert self.loop.scheduler.admission.admit(request) is None
            self.loop.submit(request)
        self.loop.receive()
        while self.loop.step():
            self.loop.scheduler.check()
        return {key: [token for output in outputs for token in output.token_ids] for key, outputs in self.sent.items()}


def prompts(count: int = 5) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(3, VOCAB) for _ in range(draw.choice((1, 5, 16, 17, 30)))] for _ in range(count)]


def replayed(body: Callable[[], None]) -> Callable[[], object]:
    """A recorder whose recordings are the function itself."""
    body()
    return body


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_greedy_tokens_and_logprobs_are_those_of_the_plain_runner(folder: Path, late: bool, recorded: bool) -> None:
    expected = Engine(host_runner(folder), ahead=0)
    runner = device_runner(folder)
    if recorded:
        runner.record(replayed)
    found = Engine(Late(runner) if late else runner, ahead=1)
    params = {"logprobs": 3, "repetition_penalty": 1.2, "logit_bias": {9: 1.5}} if not recorded else {}
    assert found.answer(prompts(), **params) == expected.answer(prompts(), **params)
    for key, outputs in expected.sent.items():
        for mine, theirs in zip(found.sent[key], outputs, strict=True):
            for left, right in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
                assert (left.rank, left.top_ids) == (right.rank, right.top_ids)
                assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


def test_an_attention_that_cannot_be_recorded_is_given_exact_lengths(folder: Path) -> None:
    expected = Engine(host_runner(folder), ahead=0).answer(prompts())
    assert Engine(device_runner(folder, "reference"), ahead=1).answer(prompts()) == expected


def test_choices_preemptions_and_a_scored_prompt_bring_what_the_plain_runner_brings(folder: Path) -> None:
    params = {"n": 2, "max_tokens": 14, "prompt_logprobs": 2}
    expected, found = Engine(host_runner(folder), ahead=0, blocks=6), Engine(device_runner(folder), ahead=1, blocks=6)
    assert found.answer(prompts(2), **params) == expected.answer(prompts(2), **params)
    assert found.loop.scheduler.stats.preemptions > 0
    for key, outputs in expected.sent.items():
        for left, right in zip(found.sent[key][0].prompt_logprobs or (), outputs[0].prompt_logprobs or (), strict=True):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                assert (left.rank, left.top_ids) == (right.rank, right.top_ids)
                assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


def test_a_seed_gives_a_request_the_same_tokens_alone_and_among_others(folder: Path) -> None:
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 11}
    alone = Engine(device_runner(folder), ahead=1).answer(prompts()[:1], **sampling)
    among = Engine(device_runner(folder), ahead=1).answer(prompts(), **sampling)
    assert among["r0", 0] == alone["r0", 0]


def test_bad_words_of_several_tokens_are_never_completed(folder: Path) -> None:
    free = Engine(device_runner(folder), ahead=1).answer(prompts()[:2])
    words = tuple((tokens[1], tokens[2]) for tokens in free.values())
    expected = Engine(host_runner(folder), ahead=0).answer(prompts()[:2], bad_words=words)
    found = Engine(device_runner(folder), ahead=1).answer(prompts()[:2], bad_words=words)
    assert found == expected
    assert found != free


def test_bans_that_leave_nothing_fail_their_request_alone(folder: Path) -> None:
    engine = Engine(device_runner(folder), ahead=1)
    engine.answer(prompts()[:1], allowed_token_ids=())
    assert [output.error_kind for output in engine.sent["r0", 0]] == ["invalid"]
    assert engine.sent["r0", 0][0].finish_reason == "error"


def test_every_step_up_to_the_largest_batch_has_a_recording(folder: Path) -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(5) == [1, 2, 4, 5]
    assert list(graph_sizes(600))[-1] == 256
    recorded: list[int] = []

    def decode(slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        recorded.append(len(slots))
        return positions[:, None].expand(-1, 7).float()

    graphs = DecodeGraphs(decode, largest=20, vocab_size=7, device=CPU, recorder=replayed)
    assert recorded == [20, 16, 8, 4, 2, 1]
    assert [graphs.size_for(rows) for rows in (1, 3, 9, 20, 21)] == [1, 4, 16, 20, None]
    inputs = torch.tensor([[3, 1, 0, -1], [5, 6, 7, -1]], dtype=torch.int32)
    assert graphs.replay(inputs, 4)[:, 0].tolist() == [5, 6, 7, -1]

"""The engine's tokens are transformers' tokens: run together, in chunks, from cached prefixes, after preemptions."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from leoserve.engine.config import EngineConfig
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Request, SamplingParams, StepOutputs, TokenOutput
from leoserve.engine.start import start_engine
from tests.checkpoints import write_checkpoint

TOKENS = 200
PROMPTS = 32
SHAPES = [("7b", "old", "bin-sharded"), ("70b", "new", "safetensors"), ("mistral", "none", "safetensors-sharded")]


@pytest.fixture(scope="module", params=SHAPES, ids=[shape for shape, _, _ in SHAPES])
def checkpoint(request, tmp_path_factory) -> Path:
    shape, rope, files = request.param
    folder = tmp_path_factory.mktemp(shape)
    return write_checkpoint(folder, shape, fmt=files, rope=rope, dtype=torch.float32)


def prompts(lengths: range = range(1, 150), count: int = PROMPTS) -> list[list[int]]:
    generator = random.Random(7)
    return [[generator.randrange(3, 300) for _ in range(generator.choice(lengths))] for _ in range(count)]


@cache
def network(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()


def greedy(folder: Path, prompt: list[int], answer: list[int]) -> list[int]:
    """What transformers finds most likely after the prompt, and after each token of the answer but the last.

    Equal to the answer exactly when the answer is the greedy one: each token is then the best after all before it.
    """
    with torch.inference_mode():
        logits = network(folder)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits[:, : rows_with_a_token(folder)].argmax(-1).tolist()


def assert_greedy(folder: Path, answers: list[list[int]]) -> None:
    assert len(answers) == PROMPTS
    for prompt, answer in zip(prompts(), answers, strict=True):
        assert len(answer) == TOKENS
        assert answer == greedy(folder, prompt, answer)


@cache
def rows_with_a_token(folder: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


class Engine:
    """An engine in this process, and what it has sent."""

    def __init__(self, folder: Path, **options) -> None:
        settings = {"num_kv_blocks": 1024, "block_size": 16, "max_model_len": 512, "threads": 1, "dtype": "float32"}
        ranges = [(0, rows_with_a_token(folder))]
        config = EngineConfig(model=str(folder), device="cpu", token_ranges=ranges, **(settings | options))
        self.sent: dict[tuple[str, int], list[TokenOutput]] = {}
        self.loop: EngineLoop
        self.loop, _ = start_engine(config, self._receive)

    def answer(self, prompts: list[list[int]], name: str = "r", **params) -> list[list[int]]:
        """All prompts together; the tokens of each one's first choice."""
        settings = {"max_tokens": TOKENS, "temperature": 0.0} | params
        for number, prompt in enumerate(prompts):
            request = Request(
                request_id=f"{name}{number}", prompt=prompt, params=SamplingParams(**settings), arrival=float(number)
            )
            assert self.loop.scheduler.admission.admit(request) is None
            self.loop.submit(request)
        self.loop.receive()
        while self.loop.step():
            pass
        self.loop.scheduler.check()
        return [self.tokens(f"{name}{number}") for number in range(len(prompts))]

    def tokens(self, name: str, index: int = 0) -> list[int]:
        outputs = self.sent[name, index]
        assert outputs[-1].finish_reason in ("length", "stop"), outputs[-1].error
        return [token for output in outputs for token in output.token_ids]

    def _receive(self, message) -> None:
        assert isinstance(message, StepOutputs)
        for output in message.outputs:
            self.sent.setdefault((output.request_id, output.index), []).append(output)


def test_greedy_tokens_are_transformers_tokens_when_run_together(checkpoint):
    assert_greedy(checkpoint, Engine(checkpoint).answer(prompts()))


def test_greedy_tokens_are_the_same_with_prompts_in_small_chunks(checkpoint):
    engine = Engine(checkpoint, max_num_seqs=8, max_num_batched_tokens=24)
    assert_greedy(checkpoint, engine.answer(prompts()))


def test_greedy_tokens_are_the_same_from_cached_prefixes(checkpoint):
    engine = Engine(checkpoint, max_num_seqs=8)
    engine.answer(prompts(), name="warm", max_tokens=1)
    assert_greedy(checkpoint, engine.answer(prompts()))
    cached = [engine.sent[f"r{number}", 0][0].num_cached_tokens for number in range(PROMPTS)]
    assert cached == [(len(prompt) - 1) // 16 * 16 for prompt in prompts()]


def test_greedy_tokens_are_the_same_after_preemptions(checkpoint):
    engine = Engine(checkpoint, num_kv_blocks=60, max_model_len=400)
    assert_greedy(checkpoint, engine.answer(prompts()))
    assert engine.loop.scheduler.stats.preemptions > 10


@pytest.mark.parametrize("broken", [0, 4, 19])
def test_a_step_that_fails_once_changes_no_token(checkpoint, broken):
    engine = Engine(checkpoint, num_kv_blocks=200)
    model, calls = engine.loop.runner.model, []
    forward = model.forward

    def fail_once(*inputs):
        hidden = forward(*inputs)
        calls.append(len(inputs[0]))
        if len(calls) == broken + 1:
            raise RuntimeError("out of memory")
        return hidden

    model.forward = fail_once
    answers = engine.answer(prompts()[:4], max_tokens=30)
    for prompt, answer in zip(prompts(), answers, strict=False):
        assert answer == greedy(checkpoint, prompt, answer)


def test_choices_that_share_a_prompt_say_what_a_lone_one_says(checkpoint):
    engine = Engine(checkpoint)
    engine.answer(prompts()[:4], n=3, max_tokens=40)
    for number in range(4):
        for index in range(3):
            answer = engine.tokens(f"r{number}", index)
            assert len(answer) == 40
            assert answer == greedy(checkpoint, prompts()[number], answer)


def test_a_seed_gives_the_same_tokens_whatever_else_runs(checkpoint):
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "max_tokens": 60, "logprobs": 2}
    alone = Engine(checkpoint)
    alone.answer([prompts()[3]], **sampling)
    crowd = Engine(checkpoint, max_num_seqs=16, max_num_batched_tokens=48, num_kv_blocks=60, max_model_len=400)
    crowd.answer(prompts(), **sampling)
    assert crowd.loop.scheduler.stats.preemptions > 0
    assert crowd.tokens("r3") == alone.tokens("r0")
    assert [output.logprobs for output in crowd.sent["r3", 0]] == [output.logprobs for output in alone.sent["r0", 0]]


def test_prompt_logprobs_are_transformers_log_softmax(checkpoint):
    prompt = prompts()[5]
    engine = Engine(checkpoint, max_num_seqs=4, max_num_batched_tokens=16)
    engine.answer([prompt], max_tokens=0, prompt_logprobs=1)
    (output,) = engine.sent["r0", 0]
    with torch.inference_mode():
        logits = network(checkpoint)(torch.tensor([prompt])).logits[0, :-1, : rows_with_a_token(checkpoint)]
    truth = torch.log_softmax(logits, -1)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    for position, entry in enumerate(output.prompt_logprobs[1:]):
        assert entry.logprob == pytest.approx(truth[position, prompt[position + 1]].item(), abs=1e-4)
        assert entry.top_ids == [truth[position].argmax().item()]

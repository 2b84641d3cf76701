"""The engine on a GPU, as a server starts it: the right tokens, whatever runs beside them, and memory that suffices."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from leoserve.engine.config import EngineConfig
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Request, SamplingParams, StepOutputs, TokenOutput
from leoserve.engine.start import start_engine
from tests.checkpoints import write_checkpoint

IDS = 440  # with a token
GIB = 1 << 30
ROUNDING = 0.08  # of a logit in half precision; logits spread by about 1.6


@pytest.fixture(scope="module", params=["7b", "70b", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("leo"), request.param, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


class Engine:
    """An engine in this process, and what it has sent."""

    def __init__(self, folder: Path, **options: Any) -> None:
        settings: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 64, "num_kv_blocks": 600, "progress": False}
        config = EngineConfig(model=str(folder), device="cuda", token_ranges=[(0, IDS)], **(settings | options))
        self.sent: dict[tuple[str, int], list[TokenOutput]] = {}
        self.loop: EngineLoop
        self.loop, self.ready = start_engine(config, self._take)

    def _take(self, message: object) -> None:
        assert isinstance(message, StepOutputs)
        for output in message.outputs:
            self.sent.setdefault((output.request_id, output.index), []).append(output)

    def answer(self, prompts: list[list[int]], name: str = "r", **params: Any) -> list[list[int]]:
        """All prompts together; the tokens of each one's first choice."""
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(**({"max_tokens": 40, "temperature": 0.0} | params))
            request = Request(request_id=f"{name}{number}", prompt=prompt, params=sampling, arrival=float(number))
            assert self.loop.scheduler.admission.admit(request) is None
            self.loop.submit(request)
        self.loop.receive()
        while self.loop.step():
            self.loop.scheduler.check()
        outputs = [self.sent[f"{name}{number}", 0] for number in range(len(prompts))]
        assert all(output.error is None for found in outputs for output in found)
        return [[token for output in found for token in output.token_ids] for found in outputs]

    def logprobs(self, name: str) -> list[float]:
        return [one.logprob for output in self.sent[name, 0] for one in output.logprobs or ()]


def prompts(count: int, longest: int = 300) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(3, IDS) for _ in range(draw.randrange(1, longest))] for _ in range(count)]


@cache
def network(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().cuda()


def assert_greedy(folder: Path, asked: list[list[int]], answers: list[list[int]], slack: float) -> None:
    """Each token is one of those that transformers, in float32, finds most likely after all before it."""
    exact = total = 0
    for prompt, answer in zip(asked, answers, strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([prompt + answer], device="cuda")
            logits = network(folder)(tokens).logits[0, len(prompt) - 1 : -1, :IDS]
        chosen = logits.gather(1, torch.tensor(answer, device="cuda")[:, None])[:, 0]
        missing = logits.amax(-1) - chosen
        assert missing.max() <= slack, f"a token is {missing.max():.3f} below the best"
        exact += int((missing == 0).sum())
        total += len(answer)
    assert exact > 0.9 * total


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"async_scheduling": False}], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_greedy_tokens_are_transformers_up_to_rounding(folder: Path, dtype: str, options: dict[str, Any]) -> None:
    engine = Engine(folder, dtype=dtype, **options)
    assert engine.ready.attention == "triton"
    assert_greedy(folder, prompts(32), engine.answer(prompts(32)), ROUNDING)


def test_greedy_tokens_of_float32_are_transformers_exactly(folder: Path) -> None:
    engine = Engine(folder, dtype="float32")
    assert_greedy(folder, prompts(16), engine.answer(prompts(16)), 1e-3)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_cache_of_8_bits_changes_little(folder: Path, kv_dtype: str) -> None:
    plain, small = Engine(folder), Engine(folder, kv_dtype=kv_dtype)
    asked = prompts(16)
    plain.answer(asked, max_tokens=1, prompt_logprobs=0)
    small.answer(asked, max_tokens=1, prompt_logprobs=0)
    differences = [
        abs(left.logprob - right.logprob)
        for number in range(16)
        for left, right in zip(*(e.sent[f"r{number}", 0][0].prompt_logprobs or () for e in (plain, small)), strict=True)
        if left is not None and right is not None
    ]
    assert sum(differences) / len(differences) < (0.05 if kv_dtype == "int8" else 0.15)


def test_deterministic_answers_have_the_same_bits_alone_and_among_64(folder: Path) -> None:
    asked = prompts(64)
    params = {"temperature": 0.9, "top_p": 0.95, "seed": 5, "logprobs": 0}
    crowd = Engine(folder, deterministic=True)
    together = crowd.answer(asked, **params)
    alone = Engine(folder, deterministic=True, max_num_batched_tokens=128)
    for number in (0, 17, 63):
        name = f"alone{number}-"
        assert alone.answer([asked[number]], name, **params) == [together[number]]
        assert alone.logprobs(f"{name}0") == crowd.logprobs(f"r{number}")


def test_a_start_that_fits_never_runs_out_of_memory(folder: Path) -> None:
    gc.collect()  # engines of other tests are cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free, total = torch.cuda.mem_get_info()
    ballast = torch.empty(free - 4 * GIB, dtype=torch.int8, device="cuda")  # what is left is small
    left = torch.cuda.mem_get_info()[0]
    engine = Engine(
        folder,
        num_kv_blocks=None,
        gpu_memory_utilization=1 - 0.3 * GIB / total,
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=16384,
    )
    pool = engine.loop.scheduler.pool
    assert pool.num_blocks * engine.ready.block_size >= 8192
    draw = random.Random(1)
    long = [[draw.randrange(3, IDS) for _ in range(7000)] for _ in range(12)]
    wild = {"temperature": 1.0, "top_p": 0.9, "logprobs": 20, "presence_penalty": 0.5, "logit_bias": {4: 1.0}}
    engine.answer(long, "long", max_tokens=30, prompt_logprobs=20)
    engine.answer(prompts(400), "many", max_tokens=60, **wild)
    assert torch.cuda.max_memory_reserved() - ballast.nbytes <= left + 64 * (1 << 20)
    del ballast

"""A request's answer has the same bytes whatever happens around it: the default on a CPU."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from leoserve.engine.request import Request, SamplingParams, TokenOutput
from leoserve.engine.sequence import Sequence
from tests.checkpoints import write_checkpoint
from tests.engine.test_greedy import Engine

PROMPT = [random.Random(1).randrange(3, 300) for _ in range(75)]
SAMPLING = {"max_tokens": 40, "temperature": 0.9, "top_p": 0.95, "seed": 3, "logprobs": 5}


@pytest.fixture(scope="module", params=["7b", "70b", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, dtype=torch.bfloat16)


def engine(folder: Path, **options: object) -> Engine:
    return Engine(folder, **({"dtype": "bfloat16", "max_num_seqs": 64} | options))


def others(count: int) -> list[list[int]]:
    draw = random.Random(2)
    return [[draw.randrange(3, 300) for _ in range(draw.randrange(1, 120))] for _ in range(count)]


def said(outputs: list[TokenOutput]) -> bytes:
    """Tokens and log-probabilities, as bytes."""
    tokens = [token for output in outputs for token in output.token_ids]
    entries = [entry for output in outputs for entry in output.logprobs or ()]
    numbers = [number for entry in entries for number in (entry.logprob, *entry.top_logprobs)]
    ids = [number for entry in entries for number in (entry.rank, *entry.top_ids)]
    assert len(tokens) == SAMPLING["max_tokens"] == len(entries)
    return struct.pack(f"{len(tokens) + len(ids)}i{len(numbers)}d", *tokens, *ids, *numbers)


@pytest.fixture(scope="module")
def alone(folder: Path) -> bytes:
    lone = engine(folder)
    lone.answer([PROMPT], **SAMPLING)
    return said(lone.sent["r0", 0])


def test_in_a_batch_of_64_and_in_chunks(folder: Path, alone: bytes) -> None:
    crowd = engine(folder, max_num_batched_tokens=70)
    crowd.answer([*others(30), PROMPT, *others(33)], **SAMPLING)
    assert said(crowd.sent["r30", 0]) == alone


def test_in_chunks_of_every_size(folder: Path, alone: bytes) -> None:
    for budget in (1, 7, 16, 33, 74):
        chunked = engine(folder, max_num_seqs=1, max_num_batched_tokens=budget)
        chunked.answer([PROMPT], **SAMPLING)
        assert said(chunked.sent["r0", 0]) == alone, budget


@pytest.mark.parametrize("shared", [16, 20, 64, 75])
def test_from_a_cached_prefix(folder: Path, alone: bytes, shared: int) -> None:
    warm = engine(folder)
    warm.answer([PROMPT[:shared]], name="warm", max_tokens=30, temperature=0.0)
    warm.answer([PROMPT], **SAMPLING)
    assert said(warm.sent["r0", 0]) == alone
    assert warm.sent["r0", 0][0].num_cached_tokens > 0


def test_from_the_prefix_of_a_conversation(folder: Path) -> None:
    """The answer of the turn before was generated token by token: alone it would be computed as a prompt."""
    talk = engine(folder)
    (answer,) = talk.answer([PROMPT], name="turn", max_tokens=40, temperature=0.0)
    second = [*PROMPT, *answer, 5, 6, 7]
    talk.answer([second], **SAMPLING)
    fresh = engine(folder)
    fresh.answer([second], **SAMPLING)
    assert said(talk.sent["r0", 0]) == said(fresh.sent["r0", 0])


def test_after_preemptions(folder: Path, alone: bytes) -> None:
    tight = engine(folder, num_kv_blocks=26, max_model_len=320)
    scheduler, preempted = tight.loop.scheduler, list[tuple[str, int]]()
    preempt = scheduler._preempt

    def watched(sequence: Sequence) -> None:
        preempted.append((sequence.request.request_id, sequence.num_generated))
        preempt(sequence)

    scheduler._preempt = watched  # type: ignore[method-assign]
    tight.answer([*others(3), PROMPT], **SAMPLING)
    assert any(name == "r3" and generated > 0 for name, generated in preempted)
    assert said(tight.sent["r3", 0]) == alone


def test_after_a_preemption_another_request_had_the_answer_as_its_prompt(folder: Path, alone: bytes) -> None:
    """Then the cache has the answer's blocks as a prompt's, and they must not stand in for its own."""
    engine_ = engine(folder)
    scheduler = engine_.loop.scheduler
    complete, done = scheduler.complete, list[int]()

    def preempt_once(*results: Any) -> list[TokenOutput]:
        outputs = complete(*results)
        for sequence in list(scheduler.running):
            if sequence.request.request_id == "r0" and sequence.num_generated == 37 and not done:
                done.append(scheduler.stats.preemptions)
                tokens = list(sequence.tokens)
                scheduler._preempt(sequence)
                other = Request(request_id="other", prompt=tokens, params=SamplingParams(max_tokens=1), arrival=-1.0)
                assert scheduler.admission.admit(other) is None
                scheduler.add(other)
        return outputs

    scheduler.complete = preempt_once  # type: ignore[method-assign]
    engine_.answer([PROMPT], **SAMPLING)
    assert done
    assert said(engine_.sent["r0", 0]) == alone


def test_choices_of_one_request_and_a_lone_one(folder: Path, alone: bytes) -> None:
    many = engine(folder)
    many.answer([PROMPT], n=4, **SAMPLING)
    assert said(many.sent["r0", 0]) == alone


def test_turned_off_answers_are_shared_as_beginnings(folder: Path) -> None:
    talk = engine(folder, deterministic=False)
    (answer,) = talk.answer([PROMPT], name="turn", max_tokens=40, temperature=0.0)
    talk.answer([[*PROMPT, *answer, 5, 6, 7]], **SAMPLING)
    assert talk.sent["r0", 0][0].num_cached_tokens > len(PROMPT)

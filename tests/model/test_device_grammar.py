"""Answers that follow a grammar on the GPU's runner: the plain runner's tokens, and nothing of it in other rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leokernels import native
from leokernels.triton.state import SamplingState
from leoserve.engine.loop import Constrained
from leoserve.engine.request import Request, SamplingParams
from leoserve.model.grammar import CompiledGrammar, Grammars
from leoserve.model.nativeparsers import NativeParsers
from leoserve.model.parsers import PackagedParsers, Parsers, Spelling
from leoserve.model.sampler import Sampled
from leoserve.model.step import Grammar, TokenTable
from tests.checkpoints import write_checkpoint
from tests.model.test_device import VOCAB, Engine, Late, device_runner, host_runner, prompts, replayed

END = 2
PIECES = [b"", b"", b"", *(bytes([97 + token % 26]) for token in range(3, VOCAB))]  # a letter each, many times over
DATE = Grammar("regex", "(mo|di|mi|do|fr)tag[a-f]{2,4}", "response_format")
LONG = Grammar("regex", "x[a-z]{30}", "response_format")
SHORT = Grammar("regex", "(aus|bis|mit)", "response_format")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("7b"), "7b", dtype=torch.float32)


def compiled(grammar: Grammar, parsers: Callable[[Spelling], Parsers] = PackagedParsers) -> CompiledGrammar:
    return Grammars(TokenTable(PIECES, [0, 1, END], [END]), parsers).compile(grammar)


def text(tokens: list[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode()


def answers(runner: object, grammars: list[Grammar | None], **options: Any) -> list[list[int]]:
    """Tokens of a prompt for each of these, all together; every third or so has no grammar."""
    return [tokens for tokens, _ in ended(runner, grammars, **options)]


def ended(
    runner: object,
    grammars: list[Grammar | None],
    *,
    ahead: int,
    blocks: int = 24,
    parsers: Callable[[Spelling], Parsers] = PackagedParsers,
    **params: object,
) -> list[tuple[list[int], str | None]]:
    """The same, with the reasons of their ends."""
    engine = Engine(runner, ahead=ahead, blocks=blocks)
    for number, (prompt, grammar) in enumerate(zip(prompts(len(grammars)), grammars, strict=True)):
        settings = {"max_tokens": 12, "stop_token_ids": (END,), "seed": number} | params
        sampling = SamplingParams(grammar=grammar, **settings)  # type: ignore[arg-type]
        request = Request(request_id=f"r{number}", prompt=prompt, params=sampling, arrival=float(number))
        assert engine.loop.scheduler.admission.admit(request) is None
        engine.loop.submit(request if grammar is None else Constrained(request, compiled(grammar, parsers)))
    engine.loop.receive()
    while engine.loop.step():
        engine.loop.scheduler.check()
    found = [engine.sent[f"r{number}", 0] for number in range(len(grammars))]
    assert all(output.error is None for outputs in found for output in outputs)
    return [
        ([token for output in outputs for token in output.token_ids], outputs[-1].finish_reason) for outputs in found
    ]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_greedy_answers_follow_their_grammars_and_are_the_plain_runners(
    folder: Path, late: bool, recorded: bool
) -> None:
    grammars = [DATE, None, LONG, DATE]
    expected = answers(host_runner(folder), grammars, ahead=0, temperature=0.0)
    runner = device_runner(folder)
    if recorded:
        runner.record(replayed)
    assert answers(Late(runner) if late else runner, grammars, ahead=1, temperature=0.0) == expected
    assert re.fullmatch(DATE.source, text(expected[0]))
    assert re.fullmatch("x[a-z]{11}", text(expected[2]))  # cut by max_tokens
    assert not re.fullmatch(DATE.source, text(expected[1]))


@pytest.mark.parametrize("blocks", [24, 5])  # few: answers are preempted, and come back
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 2.0, "logprobs": 1}, {"max_tokens": 5}]
)
@pytest.mark.parametrize("known", [True, False])  # whether an end may be known before the next step
def test_the_plain_runner_s_idle_threads_move_parsers_to_the_same_ends(
    folder: Path, params: dict[str, Any], blocks: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        asked = native.Follower.ended
        monkeypatch.setattr(native.Follower, "ended", lambda self, wait: asked(self, wait=True) if wait else None)
    grammars = [DATE, None, LONG, SHORT, DATE, SHORT]
    expected = ended(host_runner(folder), grammars, ahead=0, blocks=blocks, **params)
    found = ended(host_runner(folder), grammars, ahead=0, blocks=blocks, parsers=NativeParsers, **params)
    assert found == expected
    assert (len(found[3][0]), found[3][1]) == (3, "stop")
    assert {reason for _, reason in found} >= {"stop", "length"}


def test_parsers_move_to_the_same_ends_where_steps_fail_and_are_computed_row_by_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fails when its network is computed and its masks are made, as long as it has several rows."""
    grammars = [DATE, None, LONG, SHORT, DATE, SHORT]
    expected = ended(host_runner(folder), grammars, ahead=0, blocks=5)
    runner, failures = host_runner(folder), []
    choose = runner.sampler.sample

    def sample(logits: torch.Tensor, slots: list[int], positions: list[int]) -> Sampled:
        if len(slots) > 1:
            failures.append(slots)
            raise RuntimeError("several rows")
        return choose(logits, slots, positions)

    monkeypatch.setattr(runner.sampler, "sample", sample)
    assert ended(runner, grammars, ahead=0, blocks=5, parsers=NativeParsers) == expected
    assert failures


def test_draws_of_rows_without_a_grammar_are_as_if_no_other_row_had_one(folder: Path) -> None:
    free = answers(device_runner(folder), [None] * 4, ahead=1, temperature=1.0)
    beside = answers(device_runner(folder), [DATE, None, LONG, None], ahead=1, temperature=1.0)
    assert (beside[1], beside[3]) == (free[1], free[3])
    assert re.fullmatch(DATE.source, text(beside[0]))


def test_a_preempted_answer_goes_on_in_its_grammar(folder: Path) -> None:
    grammars: list[Grammar | None] = [LONG, LONG]
    expected = answers(host_runner(folder), grammars, ahead=0, temperature=0.0, max_tokens=28)
    found = answers(device_runner(folder), grammars, ahead=1, blocks=4, temperature=0.0, max_tokens=28)
    assert found == expected


def test_a_mask_is_uploaded_for_each_token_of_a_grammar_and_for_no_other_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[int] = []
    ban = SamplingState.ban

    def noted(self: SamplingState, slot: int, words: torch.Tensor) -> None:
        uploaded.append(slot)
        ban(self, slot, words)

    monkeypatch.setattr(SamplingState, "ban", noted)
    assert answers(device_runner(folder), [None, None], ahead=1, temperature=0.0)
    assert uploaded == []
    constrained, free = answers(device_runner(folder), [LONG, None], ahead=1, temperature=0.0)
    assert len(free) == len(constrained) == 12
    assert set(uploaded) == {0}
    assert len(uploaded) == 1 + 12  # with its slot, and before every token

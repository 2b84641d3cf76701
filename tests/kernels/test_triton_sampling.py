"""Choosing tokens in Triton: the CPU sampler's rules to the letter, and noise that is a function of the row alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leokernels.triton import logits as logits_module
from leokernels.triton import sampling as device
from leokernels.triton.philox import exponential, noise_words
from leokernels.triton.sampling import SamplingState, SlotSettings
from leokernels.triton.truncation import is_kept, truncate
from leoserve.model.edits import Edits, apply_edits
from leoserve.model.logprobs import RawRows
from leoserve.model.noise import philox4x32
from leoserve.model.sampler import NOT_FINITE, NOTHING_LEFT, Sampler
from leoserve.model.step import SamplingParams
from leoserve.model.truncation import Truncation

WHY = {device.CHOSEN: None, device.NOT_FINITE: NOT_FINITE, device.NOTHING_LEFT: NOTHING_LEFT}
VOCAB = 100


def noise_logits(rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def state_of(*rows: SlotSettings, vocab: int = VOCAB, dead: Sequence[int] = ()) -> SamplingState:
    """Slots with these settings and an empty history."""
    state = SamplingState.empty(len(rows), vocab, dead, "cpu")
    for slot, each in enumerate(rows):
        state.set_slot(slot, each, [], [])
    return state


def choose(state: SamplingState, logits: Tensor, slots: Sequence[int], positions: Sequence[int]) -> device.Sampled:
    edited = device.process_logits(logits, int32(slots), state)
    chosen = device.sample(edited, int32(slots), torch.tensor(list(positions)), state)
    device.update_counts(chosen, int32(slots), state)
    return chosen


# Noise


@triton.jit
def words_kernel(out: tl.tensor, seed: tl.tensor, choice: tl.tensor, position: tl.tensor, COUNT: tl.constexpr) -> None:
    seed, choice, position = tl.load(seed), tl.load(choice), tl.load(position)
    for start in range(0, 2 * COUNT, COUNT):
        words = noise_words(seed, choice, position, start, COUNT)
        tl.store(out + start + tl.arange(0, COUNT), words.to(tl.int64))


@triton.jit
def exponential_kernel(words: tl.tensor, out: tl.tensor, COUNT: tl.constexpr) -> None:
    lane = tl.arange(0, COUNT)
    tl.store(out + lane, exponential(tl.load(words + lane).to(tl.uint32)))


def expected_words(seed: int, choice: int, positions: Sequence[int], count: int) -> np.ndarray:
    """The words [positions, count] of ids 0 .. count - 1, by the generator that the CPU sampler uses."""
    groups = np.arange(-(-count // 4), dtype=np.uint64) + np.uint64(1)
    position = np.array(positions, dtype=np.uint64).repeat(len(groups))

    def halves(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)

    third, key = np.full_like(position, choice), halves(np.full_like(position, seed))
    words = philox4x32((*halves(position), third, np.tile(groups, len(positions))), key)
    return np.stack(words, 1).reshape(len(positions), -1)[:, :count]


def times(words: np.ndarray) -> np.ndarray:
    return -np.log1p(-np.minimum((words.astype(np.float64) + 0.5) * 2.0**-32, 1 - 2.0**-24))


@pytest.mark.parametrize(
    ("seed", "choice", "position"), [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**40 + 7), (0x243F6A8885A308D3, 3, 4095)]
)
def test_the_words_are_philoxs_of_seed_choice_position_and_id(seed: int, choice: int, position: int) -> None:
    out = torch.zeros(64, dtype=torch.int64)
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    words_kernel[(1,)](out, torch.tensor([signed]), torch.tensor([choice]), torch.tensor([position]), 32)
    assert out.tolist() == expected_words(seed, choice, [position], 64)[0].tolist()


def test_times_are_exponential_and_precise_where_they_are_small() -> None:
    rng = np.random.default_rng(0)
    words = np.concatenate([[0, 1, 2, 2**28 - 1, 2**28, 2**32 - 1], rng.integers(0, 2**32, 58)]).astype(np.int64)
    words[40:] >>= rng.integers(8, 31, 24)
    out = torch.zeros(64)
    exponential_kernel[(1,)](torch.from_numpy(words), out, 64)
    assert out.min() > 0
    assert np.abs(out.double().numpy() / times(words) - 1).max() < 1e-5


def test_a_race_of_exponential_times_follows_the_weights() -> None:
    weights, count = np.array([1.0, 0.5, 0.3, 0.01, 0.19]), 40_000
    drawn = expected_words(9, 0, range(count), 5)
    observed = np.bincount((weights / times(drawn)).argmax(1), minlength=5)
    wanted = weights / weights.sum() * count
    assert ((observed - wanted) ** 2 / wanted).sum() < 4 + 4 * math.sqrt(2 * 4)


# Truncation


@triton.jit
def kept_kernel(
    weights: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    kept: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    line = (weights + row * VOCAB).to(tl.pointer_type(tl.int32), bitcast=True)
    k, p, least = tl.load(top_k + row).to(tl.int32), tl.load(top_p + row), tl.load(min_p + row)
    threshold, last = truncate(line, k, p, least, VOCAB, TILE)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        bits = tl.load(line + ids, mask=ids < VOCAB, other=0)
        tl.store(kept + row * VOCAB + ids, is_kept(bits, ids, threshold, last).to(tl.int8), mask=ids < VOCAB)


Limits = tuple[int, float, float]  # top_k, top_p, min_p


def check_kept(logits: Tensor, limits: Sequence[Limits], tile: int) -> Tensor:
    """What is kept of softmax(logits) is what the CPU sampler's truncation keeps."""
    rows, vocab = logits.shape
    weights = torch.exp(logits - logits.amax(1, keepdim=True))
    top_k = torch.tensor([min(k, vocab) for k, _, _ in limits])
    top_p, min_p = (torch.tensor([each[column] for each in limits], dtype=torch.float64) for column in (1, 2))
    kept = torch.zeros(rows, vocab, dtype=torch.int8)
    kept_kernel[(rows,)](weights, top_k, top_p, min_p, kept, vocab, tile)
    # Any min_p makes top_p a share of what is there, which here does not add up to 1.
    expected = Truncation(top_k, top_p, min_p.clamp(min=1e-300), vocab).apply(weights) > 0
    assert kept.bool().tolist() == expected.tolist()
    return expected


CORNERS: dict[str, tuple[list[float], Limits]] = {
    "k of one among equals": ([1.0, 3.0, 3.0, 3.0], (1, 1.0, 0.0)),
    "k among equals": ([1.0, 3.0, 3.0, 3.0], (2, 1.0, 0.0)),
    "k more than have weight": ([1.0, -math.inf, 2.0, -math.inf], (3, 1.0, 0.0)),
    "k all but one": ([1.0, 0.0, 2.0, 1.5], (3, 1.0, 0.0)),
    "p tiny": ([1.0, 3.0, 3.0, 2.0], (9, 1e-12, 0.0)),
    "p just below one": ([0.0, 0.0, 0.0, 0.0], (9, 1 - 1e-12, 0.0)),
    "p of one": ([1.0, 3.0, -30.0, 2.0], (9, 1.0, 0.0)),
    "p exactly reached": ([0.0, 0.0, 0.0, 0.0], (9, 0.5, 0.0)),
    "p exactly reached by thirds": ([0.0, 0.0, 0.0, -math.inf], (9, 2 / 3, 0.0)),
    "p of what k left": ([2.0, 1.0, 1.0, 1.0], (3, 0.9, 0.0)),
    "p cuts the equals that k cut": ([0.0, 0.0, 0.0, 0.0], (3, 0.6, 0.0)),
    "min_p of one": ([1.0, 3.0, 3.0, 2.0], (9, 1.0, 1.0)),
    "min_p at a border": ([0.0, math.log(0.5), math.log(0.25), -9.0], (9, 1.0, 0.25)),
    "all three": ([2.0, 1.9, 1.9, -4.0], (2, 0.7, 0.1)),
    "one-hot": ([-math.inf, 5.0, -math.inf, -math.inf], (2, 0.9, 0.1)),
    "weights that vanish": ([0.0, -103.0, -103.2, -200.0], (3, 0.9999999, 0.0)),
}


@pytest.mark.parametrize("tile", [2, 4])
def test_what_is_kept_in_corner_cases(tile: int) -> None:
    rows, limits = zip(*CORNERS.values(), strict=True)
    kept = check_kept(torch.tensor(rows), limits, tile)
    assert kept.any(1).all()


@st.composite
def rows_and_limits(draw: st.DrawFn) -> tuple[Tensor, list[Limits]]:
    """Two rows around a tile's width, many with equal values or banned ids, and limits that meet them."""
    vocab = draw(st.sampled_from([1, 3, 16, 37, 64, 150]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(2, vocab)) * draw(st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]))
    step = draw(st.sampled_from([0.0, 0.25, 2.0]))
    if step:
        logits = np.round(logits / step) * step
    banned = rng.random((2, vocab)) < draw(st.sampled_from([0.0, 0.0, 0.5, 0.95]))
    logits[banned & (np.arange(vocab) != vocab // 2)] = -np.inf
    top_k = st.one_of(st.just(10**6), st.integers(1, vocab))
    top_p = st.one_of(st.just(1.0), st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.9999]), st.floats(1e-6, 0.9999))
    min_p = st.one_of(st.just(0.0), st.sampled_from([0.05, 0.5, 1.0]), st.floats(0, 1))
    limits = [draw(st.tuples(top_k, top_p, min_p)) for _ in range(2)]
    return torch.tensor(logits, dtype=torch.float32), limits


@settings(max_examples=60, deadline=None)
@given(rows_and_limits(), st.sampled_from([16, 64]))
def test_what_is_kept_is_what_the_cpu_sampler_keeps(case: tuple[Tensor, list[Limits]], tile: int) -> None:
    check_kept(*case, tile)


# Edits

EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"logit_bias": {3: 2.5, 7: -100.0, 400: 1.0}},
    {"allowed_token_ids": (1, 2, 3, 64, 99)},
    {"bad_words": ((5,), (64,)), "allowed_token_ids": (5, 6)},
    {"stop_token_ids": (8, 9), "min_tokens": 5},
    {"stop_token_ids": (8, 9), "min_tokens": 2},
    {"repetition_penalty": 1.37},
    {"frequency_penalty": 0.3, "presence_penalty": 0.7},
    {"repetition_penalty": 0.9, "frequency_penalty": -0.1, "presence_penalty": 1.1, "logit_bias": {4: 9.0}},
)
PROMPT, GENERATED = [4, 9, 9, 30, 500], [7, 7, 30]


def settings_of(params: SamplingParams) -> SlotSettings:
    return SlotSettings(
        seed=params.seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        bias=params.logit_bias,
        allowed=params.allowed_token_ids,
        banned=[word[0] for word in params.bad_words],
        min_tokens=params.min_tokens,
        stops=params.stop_token_ids,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_are_edited_to_the_bit_as_on_a_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "TILE", 64)
    logits = noise_logits(len(EDITS)).to(dtype)
    logits[:, 10] = math.nan
    dead = [10, 99]
    state = SamplingState.empty(len(EDITS) + 1, VOCAB, dead, "cpu")
    expected, edits = logits.float().clone(), []
    expected[:, dead] = -math.inf
    for row, changes in enumerate(EDITS):
        params = SamplingParams(max_tokens=9, **changes)
        state.set_slot(row + 1, settings_of(params), PROMPT, GENERATED)
        edit = Edits.of(params, PROMPT, GENERATED, VOCAB)
        edits += [(row, edit)] if edit is not None else []
    apply_edits(expected, edits)
    before = logits.clone()
    found = device.process_logits(logits, int32(range(1, len(EDITS) + 1)), state)
    assert torch.equal(found, expected)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())


def test_a_mask_that_is_uploaded_bans_what_it_says() -> None:
    state = state_of(SlotSettings(temperature=0, masked=True))
    allowed = np.zeros(VOCAB, dtype=np.bool_)
    allowed[[31, 32, 95]] = True
    state.ban(0, device.pack_bits(~allowed))
    found = device.process_logits(torch.zeros(1, VOCAB), int32([0]), state)
    assert found.isfinite().nonzero()[:, 1].tolist() == [31, 32, 95]


def test_greedy_rows_go_the_cpu_samplers_way_for_several_steps() -> None:
    """With every kind of edit, so with everything that update_counts keeps up."""
    params = [SamplingParams(max_tokens=9, temperature=0, **changes) for changes in EDITS]
    rows = len(params)
    cpu = Sampler(max_slots=rows, vocab_size=VOCAB, token_ranges=[(0, 90)], device="cpu")
    state = SamplingState.empty(rows, VOCAB, range(90, VOCAB), "cpu")
    for slot, each in enumerate(params):
        cpu.set_slot(slot, each, 0, PROMPT, GENERATED[:slot])
        state.set_slot(slot, settings_of(each), PROMPT, GENERATED[:slot])
    for step in range(4):
        logits = noise_logits(rows, seed=step, scale=0.3)
        logits[:, [7, 8, 30, 40 + step]] += 2.0
        expected = cpu.sample(logits.clone(), list(range(rows)), [step] * rows)
        chosen = choose(state, logits, range(rows), [step] * rows)
        assert chosen.tokens.tolist() == expected.token_ids
        assert [WHY[reason] for reason in chosen.failed.tolist()] == expected.failed
        assert torch.equal(state.last_token, chosen.tokens)


def test_a_slot_forgets_its_former_sequence() -> None:
    logits = noise_logits(1)
    state = state_of(settings_of(SamplingParams(max_tokens=9, temperature=0, **EDITS[8])))
    choose(state, logits, [0], [0])
    state.set_slot(0, SlotSettings(temperature=0), [], [])
    assert choose(state, logits, [0], [0]).tokens.tolist() == logits.argmax(1).tolist()
    state.set_slot(0, SlotSettings(presence=50.0, temperature=0), [], [])
    assert choose(state, logits, [0], [0]).tokens.tolist() == logits.argmax(1).tolist()


# Choosing


def mixture(count: int) -> list[SlotSettings]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.7, "top_p": 0.95},
        {},
        {"temperature": 0.0},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9},
        {"min_p": 0.05, "choice": 3},
    ]
    return [SlotSettings(seed=(slot * 0x9E3779B97F4A7C15) % 2**64, **kinds[slot % len(kinds)]) for slot in range(count)]


def check_choice(each: SlotSettings, row: Tensor, position: int, token: int) -> None:
    """`token` wins the race among what is kept of this row, as computed in numpy."""
    if each.greedy:
        assert token == int(row.argmax())
        return
    vocab = len(row)
    probabilities = torch.softmax(row / each.temperature, 0)[None]
    limits = (each.top_k if 0 < each.top_k < vocab else vocab, each.top_p, each.min_p)
    top_k, top_p, min_p = (torch.tensor([value]) for value in limits)
    kept = Truncation(top_k, top_p.double(), min_p.double(), vocab).apply(probabilities)[0].double().numpy()
    scores = kept / times(expected_words(each.seed, each.choice, [position], vocab)[0])
    assert scores[token] >= scores.max() * (1 - 1e-5)


@pytest.mark.parametrize("vocab", [VOCAB, 5000])
def test_a_token_is_the_winner_of_its_race(vocab: int) -> None:
    rows = mixture(5)
    logits = noise_logits(5, vocab, seed=4)
    positions = [slot * 2**30 for slot in range(5)]
    state = state_of(*rows, vocab=vocab)
    chosen = choose(state, logits, range(5), positions)
    for slot, token in enumerate(chosen.tokens.tolist()):
        check_choice(rows[slot], logits[slot], positions[slot], token)
    assert chosen.failed.tolist() == [0] * 5


def test_a_row_has_the_same_token_alone_in_another_slot_and_beside_others() -> None:
    rows, logits = mixture(10), noise_logits(10, seed=5, scale=1.0)
    positions = [7 + slot for slot in range(10)]
    together = choose(state_of(*rows), logits, range(10), positions).tokens.tolist()
    order = [3, 9, 0, 6, 1]
    shuffled = choose(state_of(*rows), logits[order], order, [positions[slot] for slot in order]).tokens.tolist()
    assert shuffled == [together[slot] for slot in order]
    for slot in (0, 1, 3, 4):
        other = state_of(SlotSettings(), rows[slot])
        assert choose(other, logits[slot : slot + 1], [1], positions[slot : slot + 1]).tokens.tolist() == [
            together[slot]
        ]


def test_tokens_follow_the_distribution() -> None:
    count = 250
    row = torch.tensor([1.0, 0.2, -0.5, 0.0, -math.inf, 1.0])
    state = state_of(*[SlotSettings(seed=77, temperature=1.3)] * count, vocab=6)
    tokens = device.sample(row.repeat(count, 1), int32(range(count)), torch.arange(count), state).tokens
    observed = tokens.bincount(minlength=6).double()
    expected = torch.softmax(row / 1.3, 0).double() * count
    assert observed[4] == 0
    possible = expected > 0
    assert ((observed - expected) ** 2 / expected)[possible].sum() < 4 + 4 * math.sqrt(2 * 4)


def test_another_seed_choice_or_position_draws_other_tokens() -> None:
    logits = noise_logits(1, scale=0.1).repeat(8, 1)

    def draws(seed: int, choice: int, position: int) -> list[int]:
        state = state_of(*[SlotSettings(seed=seed + slot, choice=choice) for slot in range(8)])
        return choose(state, logits, range(8), [position] * 8).tokens.tolist()

    assert draws(100, 0, 0) == draws(100, 0, 0)
    assert len({tuple(draws(*each)) for each in ((100, 0, 0), (200, 0, 0), (100, 1, 0), (100, 0, 1))}) == 4


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}])
def test_greedy_takes_the_lowest_id_among_equals(changes: dict[str, float]) -> None:
    logits = noise_logits(2, 300)
    logits[1, [250, 17, 90]] = 50.0
    state = state_of(*[SlotSettings(**changes)] * 2, vocab=300)
    assert choose(state, logits, [0, 1], [0, 0]).tokens.tolist() == [int(logits[0].argmax()), 17]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_row_that_is_not_finite_fails_alone_and_is_not_noted(value: float) -> None:
    rows = [SlotSettings(), SlotSettings(presence=1.0), SlotSettings(allowed=[3, 4]), SlotSettings(temperature=0)]
    logits = noise_logits(4)
    expected = choose(state_of(*rows), logits, range(4), [0] * 4)
    spoiled = logits.clone()
    spoiled[1:3] = value if value == -math.inf else spoiled[1:3].index_fill(1, torch.tensor([3]), value)
    state = state_of(*rows, dead=[0])
    chosen = choose(state, spoiled, range(4), [0] * 4)
    why = device.NOTHING_LEFT if value == -math.inf else device.NOT_FINITE
    assert chosen.failed.tolist() == [0, why, why, 0]
    assert chosen.tokens[[0, 3]].tolist() == expected.tokens[[0, 3]].tolist()
    assert chosen.tokens[[1, 2]].tolist() == [1, 1]
    assert not state.history[1].any()


def test_rows_that_pad_the_batch_touch_nothing() -> None:
    state = state_of(SlotSettings(), SlotSettings(temperature=0))
    before = state.last_token.clone()
    logits = noise_logits(3)
    edited = torch.full_like(logits, math.nan)
    device.process_logits(logits, int32([-1, 1, -1]), state, edited)
    assert edited[[0, 2]].isnan().all()
    chosen = device.sample(edited, int32([-1, 1, -1]), torch.zeros(3, dtype=torch.int64), state)
    device.update_counts(chosen, int32([-1, 1, -1]), state)
    assert chosen.failed.tolist() == [0, 0, 0]
    assert chosen.tokens.min() >= 0
    assert state.last_token[0] == before[0]
    assert int(state.history.sum()) == 2


def test_no_rows_is_no_work() -> None:
    chosen = choose(state_of(SlotSettings()), torch.zeros(0, VOCAB), [], [])
    assert chosen.tokens.shape == (0,)
    none = torch.zeros(0, dtype=torch.int64)
    assert device.gather_logprobs(torch.zeros(0, VOCAB), none, none.int(), none.int(), 3).top_ids.shape == (0, 3)


def test_a_vocabulary_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no id"):
        SamplingState.empty(1, 4, range(4), "cpu")


def test_a_whole_vocabulary_of_llamas() -> None:
    vocab, dead = 32_128, range(32_007, 32_128)
    each = SlotSettings(seed=5, temperature=0.9, top_p=0.9)
    logits = noise_logits(1, vocab, scale=2.0)
    logits[0, 32_007:] = 60.0
    chosen = choose(state_of(each, vocab=vocab, dead=dead), logits, [0], [12])
    logits[0, 32_007:] = -math.inf
    check_choice(each, logits[0], 12, int(chosen.tokens))


# Log-probabilities


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab", [20, 150, 3000])
def test_logprobs_ranks_and_most_likely_tokens_are_the_cpus(vocab: int, dtype: torch.dtype) -> None:
    logits = noise_logits(5, vocab, seed=vocab).to(dtype)
    logits[1] = logits[1].round()  # equal values in numbers
    logits[2, 3] = math.nan
    logits[3, 5:9] = 60.0
    dead = [5, 8]
    state = state_of(SlotSettings(), vocab=vocab, dead=dead)
    tokens, counts = [7, 11, 0, vocab - 1, 2], [0, min(20, vocab), 2, 3, -1]
    found = device.gather_logprobs(logits, torch.tensor(tokens), int32(counts), state.dead, 20)
    wide = logits.float()
    wide[:, dead] = -math.inf
    expected = RawRows(wide).of(torch.tensor(tokens), [max(0, count) for count in counts])
    for row, entry in enumerate(expected[:4]):
        listed = len(entry.top_ids)
        assert found.rank[row] == entry.rank
        assert found.logprob[row].item() == pytest.approx(entry.logprob, abs=2e-5, nan_ok=True)
        assert found.top_ids[row, :listed].tolist() == entry.top_ids
        assert found.top_logprobs[row, :listed].tolist() == pytest.approx(entry.top_logprobs, abs=2e-5)
